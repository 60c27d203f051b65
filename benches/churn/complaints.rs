//! [`Complaints`]: what the server's process says on standard error, passed on and looked through.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread::JoinHandle;

/// A thread that reads until the process has ended.
pub(crate) struct Complaints(JoinHandle<usize>);

impl Complaints {
    pub(crate) fn listen(stderr: impl Read + Send + 'static) -> Self {
        Self(std::thread::spawn(move || {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            let pass_on = |line: String| {
                // If nobody listens, the count still tells.
                let _ = writeln!(io::stderr(), "server: {line}");
                usize::from(line.contains("panicked"))
            };
            lines.map(pass_on).sum()
        }))
    }

    /// How many panics there were. Call it when the process has ended.
    pub(crate) fn panics(self) -> io::Result<usize> {
        self.0.join().map_err(|_| io::Error::other("the listener panicked"))
    }
}
