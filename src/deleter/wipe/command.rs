//! Runs the cleaner command of a class on a device. It opens the device itself, by the
//! path of its node, so it must not ask for exclusive use, which the agent has:
//! `blkdiscard` needs `-f` for that.
//!
//! The device is not marked before: the command may need what is at its ends, such as
//! the LUKS header that `cryptsetup erase` looks for. That it is half wiped is known
//! from the journal alone.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Timespec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::device::Device;
use crate::deleter::{Control, Phase, WipeError};
use crate::method::DEVICE_VARIABLE;
use crate::node::identity::stat_fd;
use crate::node::ioctl;

/// It is looked this often whether the command shall end.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// More of a line is not kept.
const LINE_MAX: usize = 1000;

/// Runs the command to its end, whatever that is.
///
/// # Errors
/// It can't be started, says that it failed, took too long, or was cancelled; or the
/// node leads to another device.
pub fn run(
    device: &Device<'_>,
    command: &[String],
    node: &str,
    deadline: Duration,
    control: &Control,
) -> Result<(), WipeError> {
    control.enter(Phase::RunningCommand);
    let [program, arguments @ ..] = command else {
        return Err(WipeError::Refused("the cleaner command is empty".to_owned()));
    };
    same_device(device, node)?;
    let failed = |problem: String| WipeError::Command { program: program.clone(), problem };
    let (reader, writer) = io::pipe().map_err(WipeError::io("making a pipe for the cleaner command"))?;
    let stderr = writer.try_clone().map_err(WipeError::io("making a pipe for the cleaner command"))?;
    let mut process = Command::new(program);
    process.args(arguments).env(DEVICE_VARIABLE, node).process_group(0);
    process.stdin(Stdio::null()).stdout(writer).stderr(stderr);
    // While any process of it lives, the device is in use, even when the agent is killed:
    // no other agent takes it, or offers it, meanwhile.
    ioctl::inherit(&mut process, &device.fd());
    let child = process.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed("is not in the agent's image".to_owned()),
        _ => failed(format!("can't be started: {error}")),
    })?;
    // With the pipe's writing ends in it.
    drop(process);
    let mut group = Group::of(child);
    let mut output = Output::new(program, reader);
    let end = Instant::now() + deadline;
    loop {
        output.read_for_a_tick().map_err(WipeError::io("reading what the cleaner command says"))?;
        if group.has_ended().map_err(WipeError::io("waiting for the cleaner command"))? {
            break;
        }
        control.check()?;
        if Instant::now() >= end {
            return Err(failed(format!("has not ended within {deadline:?} and was killed{}", output.last_words())));
        }
    }
    let status = group.end().map_err(WipeError::io("waiting for the cleaner command"))?;
    output.read_the_rest().map_err(WipeError::io("reading what the cleaner command says"))?;
    if !status.success() {
        return Err(failed(format!("failed ({status}){}", output.last_words())));
    }
    same_device(device, node)?;
    // What it wrote by way of the page cache.
    device.sync("making durable what the cleaner command wrote")
}

/// The open file keeps the number from being given to another device; the path may
/// still be made to lead elsewhere.
fn same_device(device: &Device<'_>, node: &str) -> Result<(), WipeError> {
    let ours = stat_fd(device.fd()).map_err(WipeError::io("looking at the device"))?;
    let ours = rustix::fs::makedev(ours.stx_rdev_major, ours.stx_rdev_minor);
    match rustix::fs::stat(node) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice && stat.st_rdev == ours => Ok(()),
        Ok(_) => Err(WipeError::IdentityChanged(format!("{node} does not lead to the claimed device"))),
        Err(errno) => Err(WipeError::io("looking at the device's node")(errno.into())),
    }
}

/// The command's processes, killed at the latest when this is dropped: none shall write
/// to the device after. One that makes itself a group of its own escapes.
struct Group {
    child: Child,
    id: Option<Pid>,
    ended: bool,
}

impl Group {
    fn of(child: Child) -> Self {
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self { child, id, ended: false }
    }

    /// Whether the first process has ended. It stays a zombie, so that the group's number
    /// is not given to others.
    fn has_ended(&self) -> io::Result<bool> {
        let id = self.id.expect("a child has a number");
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(rustix::process::waitid(WaitId::Pid(id), options)?.is_some())
    }

    /// Kills all that is left of it, and waits for the first process.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(id) = self.id
            && !self.ended
        {
            // There is always the first process, if only as a zombie.
            let _ = rustix::process::kill_process_group(id, Signal::KILL);
        }
        self.ended = true;
        self.child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What the command says, line by line to the log.
struct Output<'a> {
    program: &'a str,
    reader: io::PipeReader,
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The last one that was not empty.
    last: String,
    open: bool,
}

impl<'a> Output<'a> {
    fn new(program: &'a str, reader: io::PipeReader) -> Self {
        Self { program, reader, line: Vec::new(), last: String::new(), open: true }
    }

    /// Waits a moment for output, and reads it.
    fn read_for_a_tick(&mut self) -> io::Result<()> {
        if !self.open {
            std::thread::sleep(Duration::from_millis(100));
        } else if self.is_ready(TICK)? {
            self.read_once()?;
        }
        Ok(())
    }

    /// Reads what is there, after the end of the command.
    fn read_the_rest(&mut self) -> io::Result<()> {
        while self.open && self.is_ready(Timespec::default())? {
            self.read_once()?;
        }
        self.end_line();
        Ok(())
    }

    fn is_ready(&self, timeout: Timespec) -> io::Result<bool> {
        let mut fds = [PollFd::from_borrowed_fd(self.reader.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
    }

    fn read_once(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let count = self.reader.read(&mut buffer)?;
        self.open = count > 0;
        for byte in &buffer[..count] {
            match byte {
                // Some draw their progress over and over in one line.
                b'\n' | b'\r' => self.end_line(),
                byte if self.line.len() < LINE_MAX => self.line.push(*byte),
                _ => {}
            }
        }
        Ok(())
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned();
        if !line.is_empty() {
            tracing::info!(program = self.program, line, "Cleaner command says");
            self.last = line;
        }
    }

    fn last_words(&mut self) -> String {
        self.end_line();
        if self.last.is_empty() { String::new() } else { format!("; its last words: {}", self.last) }
    }
}
