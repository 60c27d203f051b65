//! [`Process`]: this program started a second time, as the server that is measured, and the pipes between both.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::str::FromStr;

/// The other process. It answers each command with one line, when it has done it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program with these arguments.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn spawn(args: &[String], stderr: Stdio) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()?;
        let missing = || io::Error::other("the server has no pipes");
        let commands = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self {
            child,
            commands,
            answers,
        })
    }

    /// What it complains about, once, if that was asked for as a pipe.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Gives a command and doesn't wait for it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn tell(&mut self, command: &str) -> io::Result<()> {
        self.commands.write_all(format!("{command}\n").as_bytes())
    }

    /// Waits for the answer of a command.
    ///
    /// # Errors
    /// When the process is gone, or answers something else.
    pub fn answer<T: FromStr>(&mut self) -> io::Result<T> {
        let line = self.answer_line()?;
        let unclear = |_| io::Error::other(format!("the server answered {line:?}"));
        line.parse().map_err(unclear)
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// When the process is gone, or answers something else.
    pub fn ask<T: FromStr>(&mut self, command: &str) -> io::Result<T> {
        self.tell(command)?;
        self.answer()
    }

    /// The same with several values on the answer's line.
    ///
    /// # Errors
    /// When the process is gone, or answers something else.
    pub fn ask_for_all<T: FromStr>(&mut self, command: &str) -> io::Result<Vec<T>> {
        self.tell(command)?;
        let line = self.answer_line()?;
        let unclear = |_| io::Error::other(format!("the server answered {command:?} with something else"));
        line.split_ascii_whitespace()
            .map(|it| it.parse().map_err(unclear))
            .collect()
    }

    fn answer_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the server's process has ended"));
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// Has it end, and waits until it has.
    ///
    /// # Errors
    /// When it was gone already.
    pub fn quit(mut self) -> io::Result<ExitStatus> {
        self.tell("quit")?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended by now, or the run has failed and nobody needs it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers a command: called in the other process.
///
/// # Errors
/// When nobody listens any more.
pub fn answer(with: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    // In one write, so that it wakes the reader once.
    out.write_all(format!("{with}\n").as_bytes())?;
    out.flush()
}
