//! [`line()`]: one line of a program's table.

/// Prints one line of the table.
pub fn line(of: &str, what: &str, value: &str) {
    println!("{of:<14} {what:<28} {value}");
}
