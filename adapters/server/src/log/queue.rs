//! [`Queue`]: lines between those who log and the thread that writes them.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use entity_sync_runtime::{Health, Part, Severity, spawn_restarting};
use parking_lot::{Condvar, Mutex};

/// Bytes that may wait, besides as many that are being written.
const MAX_BYTES: usize = 1 << 20;

/// How long a standard error that would make others wait is left alone: whoever else has it chose so.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Lines that wait to be written, up to a number of bytes. More are dropped and counted.
pub(super) struct Queue {
    state: Mutex<State>,
    /// For the thread that writes: there is something.
    work: Condvar,
    /// For those who flush: there is nothing any more.
    idle: Condvar,
    dropped: AtomicU64,
    started: Once,
    /// Where it is reported that lines can't be written.
    part: Mutex<Option<Part>>,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: Vec::new(),
                is_writing: false,
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
            dropped: AtomicU64::new(0),
            started: Once::new(),
            part: Mutex::new(None),
        }
    }

    /// Starts the thread that writes to standard error, the first time. If the system has none to spare, nothing is written.
    pub(super) fn start(&'static self) {
        self.started.call_once(|| {
            // Nothing but a bug here ends it, and what is known of that is in the log.
            let _ = spawn_restarting("log", &Health::default(), || self.write_all_to(standard_error()));
        });
    }

    pub(super) fn report_to(&self, part: Part) {
        *self.part.lock() = Some(part);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Leaves whole lines. Never waits for anybody who writes.
    pub(super) fn push(&self, lines: &[u8]) {
        let mut state = self.state.lock();
        if state.waiting.len() + lines.len() > MAX_BYTES {
            drop(state);
            return self.drop_lines(lines);
        }
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(lines);
        drop(state);
        if was_empty {
            self.work.notify_one();
        }
    }

    /// Waits until everything is written or dropped, for so long at most.
    pub(super) fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut state = self.state.lock();
        while !state.waiting.is_empty() || state.is_writing {
            if self.idle.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    /// The life of the thread that writes.
    pub(super) fn write_all_to(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        let mut told = 0;
        let mut is_cut = false;
        loop {
            self.next(&mut lines);
            if mem::take(&mut is_cut) {
                // What follows half a line is another one.
                lines.insert(0, b'\n');
            }
            let (written, result) = write(&mut out, &lines);
            let rest = lines.get(written..).unwrap_or_default();
            match result {
                Ok(()) => {
                    self.recover();
                    let dropped = self.dropped();
                    if dropped > told {
                        let lines = dropped - told;
                        told = dropped;
                        tracing::warn!(
                            lines,
                            "lines of this log were dropped: it was not read fast enough, or could not be written"
                        );
                    }
                }
                Err(error) => {
                    is_cut = written > 0 && lines.get(written - 1) != Some(&b'\n');
                    self.drop_lines(rest);
                    self.complain(&error);
                }
            }
            lines.clear();
        }
    }

    /// Waits for lines, and takes all that there are.
    fn next(&self, lines: &mut Vec<u8>) {
        let mut state = self.state.lock();
        state.is_writing = false;
        while state.waiting.is_empty() {
            self.idle.notify_all();
            self.work.wait(&mut state);
        }
        state.is_writing = true;
        mem::swap(&mut state.waiting, lines);
    }

    fn drop_lines(&self, lines: &[u8]) {
        let count = lines.split_inclusive(|&it| it == b'\n').count();
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn complain(&self, error: &io::Error) {
        if let Some(part) = &*self.part.lock() {
            let message = format!("standard error can't be written, and what is logged is lost: {error}");
            part.report(Severity::Degraded, message);
        }
    }

    fn recover(&self) {
        if let Some(part) = &*self.part.lock() {
            part.recover();
        }
    }
}

/// As `write_all`, and says how much was written if it fails.
fn write(out: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|it| !it.is_empty()) {
        match out.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TRY_AGAIN),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// `io::Stderr` says that all is well when the descriptor can't be written to.
fn standard_error() -> Box<dyn Write> {
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(own) => Box::new(File::from(own)),
        Err(_) => Box::new(io::stderr()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes what it is told to take: so many bytes, or an error.
    struct Gate {
        permits: Receiver<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Once nobody tells any more, all is taken.
            let count = self.permits.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            self.written.lock().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Permit = Sender<io::Result<usize>>;

    fn queue() -> (&'static Queue, Permit, Arc<Mutex<Vec<u8>>>) {
        let (permit, permits) = channel();
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let written = Arc::default();
        let out = Gate {
            permits,
            written: Arc::clone(&written),
        };
        std::thread::spawn(move || queue.write_all_to(out));
        (queue, permit, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8_lossy(&written.lock()).into_owned()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn nobody_waits_for_a_reader_and_memory_is_bounded() {
        let (queue, permit, written) = queue();
        let line = [b"x".repeat(99), b"\n".to_vec()].concat();
        let lines = 10 * MAX_BYTES / line.len();
        for _ in 0..lines {
            queue.push(&line);
        }
        assert!(queue.state.lock().waiting.len() <= MAX_BYTES);
        let dropped = queue.dropped();
        // Some may be with the thread.
        assert!(dropped as usize >= lines - 2 * MAX_BYTES / line.len(), "{dropped}");
        let begun = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(begun.elapsed() < LONG);
        drop(permit);
        queue.flush(LONG);
        assert_eq!(written.lock().len(), (lines - dropped as usize) * line.len());
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported_until_they_can() {
        let (queue, permit, written) = queue();
        let health = Health::default();
        queue.report_to(health.part("log"));
        let full = || Err(io::Error::from_raw_os_error(28));
        permit.send(full()).expect("it listens");
        queue.push(b"lost\nlost too\n");
        queue.flush(LONG);
        assert_eq!((queue.dropped(), text(&written)), (2, String::new()));
        let trouble = health.troubles()[0].to_string();
        assert!(trouble.starts_with("log: standard error can't be written") && health.is_ready());
        // Half a line, and the rest can't be.
        permit.send(Ok(3)).expect("it listens");
        permit.send(full()).expect("it listens");
        queue.push(b"cut off\n");
        queue.flush(LONG);
        drop(permit);
        queue.push(b"whole\n");
        queue.flush(LONG);
        assert_eq!((queue.dropped(), text(&written)), (3, "cut\nwhole\n".to_owned()));
        assert_eq!(health.troubles(), []);
    }
}
