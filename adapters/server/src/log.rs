//! The log of the binary: lines on standard error for which nobody ever waits.
//!
//! Whoever logs leaves the line in a queue, and one thread writes. A standard error that nobody reads, that is closed or full
//! costs lines, which are counted, and nothing else: a reactor goes on, and so does the way to the end of the process.

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::time::Duration;

use entity_sync_runtime::Health;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{LogFormat, LogLevel};
use queue::Queue;

/// How long the end of the process waits until its last lines are written.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

static QUEUE: Queue = Queue::new();

/// Where lines are left. Writing to it never waits and never fails.
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        QUEUE.start();
        QUEUE.push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Log {
    /// Leaves one line, whatever is logged otherwise: what a person at the terminal should see.
    pub fn say(self, line: impl fmt::Display) {
        // In one piece, so that it stays together; and it never fails.
        let _ = { self }.write(format!("{line}\n").as_bytes());
    }

    /// Waits until all is written, for a second at most. Call it last.
    pub fn finish(self) {
        QUEUE.flush(FLUSH_WITHIN);
    }

    /// Has panics logged from now on like everything else: what the standard library does instead waits for standard error, and
    /// aborts the process if that can't be written.
    pub fn take_panics(self) {
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// What is logged goes to standard error from now on, and if that can't be written, `health` is told.
pub(crate) fn start(level: LogLevel, format: LogFormat, health: &Health) {
    QUEUE.report_to(health.part("log"));
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        // Else an event that can't be formatted is complained about with a write that panics.
        .log_internal_errors(false)
        .with_writer(Log);
    // It logs every event of a connection and every attempt to make one; our own lines say as much, at a limited rate.
    let without = Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_target("async_nats", LevelFilter::OFF);
    // A second one, as in tests that serve several times, changes nothing.
    let _ = match format {
        LogFormat::Text => log.finish().with(without).try_init(),
        LogFormat::Json => log.json().finish().with(without).try_init(),
    };
}

/// Lines that nobody will ever read.
pub(crate) fn dropped_lines() -> u64 {
    QUEUE.dropped()
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let message = info.payload_as_str().unwrap_or("a panic without a message");
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    // Only if the environment asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    if tracing::dispatcher::has_been_set() {
        tracing::error!(thread, at, "panicked: {message}{backtrace}");
    } else {
        Log.say(format_args!(
            "entity-sync: thread {thread:?} panicked at {at}: {message}{backtrace}"
        ));
    }
}
