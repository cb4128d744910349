//! `guard capture`: shows packets with the reasons of their verdicts, or writes them for Wireshark.

use std::{
    fs::File,
    io::{self, BufWriter, ErrorKind, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use clap::Args;
use guard_common::layout::SNAP_LENGTH;
use ipnet::IpNet;
use jiff::{SignedDuration, tz::TimeZone};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{Failure, entries::parse_duration, figures, without_controls};
use crate::{
    api::{
        capture::{CaptureRequest, Captured, DEFAULT_RATE, Form, HIGHEST_RATE, Line, reason},
        client::Client,
    },
    policy::parse_prefix,
};

/// Without --all or --reason, captures the packets that are dropped, or would be dropped in mode enforce. Ends
/// with Ctrl-C, --count or --for. In a flood it takes a sample of each reason, and counts the packets that it misses.
#[derive(Debug, Args)]
pub struct CaptureCommand {
    /// Write pcapng, each packet with its reason and service as a comment; `-`: to standard output
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    write: Option<PathBuf>,
    /// Capture packets that pass as well
    #[arg(long)]
    all: bool,
    /// Capture only packets with these reasons, such as closed_port,packet_limit
    #[arg(long, value_name = "R", value_delimiter = ',', value_parser = reason_name)]
    reason: Vec<String>,
    /// Capture only packets to this service of the policy
    #[arg(long, value_name = "S")]
    service: Option<String>,
    /// Capture only packets from this source
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    from: Option<IpNet>,
    /// Capture at most this many packets per second
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(HIGHEST_RATE)))]
    rate: u32,
    /// Capture at most this many bytes of each packet
    #[arg(long, value_name = "BYTES", default_value_t = SNAP_LENGTH,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SNAP_LENGTH)))]
    snap_length: u32,
    /// End after this many packets
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 30s or 10m
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    lasts: Option<SignedDuration>,
    /// Print JSON, one line for each packet
    #[arg(long)]
    json: bool,
}

/// How long the last packets may take to be written after the end was requested.
const GRACE: Duration = Duration::from_secs(1);

fn reason_name(text: &str) -> Result<String, String> {
    reason(text).map(|reason| reason.name().to_owned())
}

impl CaptureCommand {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let is_stdout = self.write.as_deref() == Some(Path::new("-"));
        if is_stdout && io::stdout().is_terminal() {
            return Err(Failure::Usage(
                "a terminal cannot show pcapng: pipe it (`guard capture -w - | wireshark -k -i -`), name \
                 a file, or leave -w out to read the packets here"
                    .to_owned(),
            ));
        }
        let request = self.request();
        let mut ended = Box::pin(self.end()?);
        let mut response = client.capture(&request).await?;
        let mut sink = self.open()?;
        if let Some(file) = self.write.as_ref().filter(|_| !is_stdout) {
            eprintln!("guard: capturing to {}; Ctrl-C ends it", file.display());
        }
        let mut arrived = BytesMut::new();
        loop {
            let chunk = tokio::select! {
                () = &mut ended => break,
                chunk = response.chunk() => chunk.context("the agent has ended")?,
            };
            let chunk = chunk.context("the agent has ended")?;
            if arrived.is_empty() {
                arrived = chunk.into();
            } else {
                // Append to the rest of a packet that has not arrived completely.
                arrived.extend_from_slice(&chunk);
            }
            let count = self.count;
            // Written in another thread: a pipe without a reader would block, and the command could not end.
            let mut writing = spawn_blocking(move || {
                let taken = sink.take(&mut arrived, count);
                (sink, arrived, taken)
            });
            let (written, is_over) = tokio::select! {
                () = &mut ended => match timeout(GRACE, &mut writing).await {
                    Ok(written) => (written, true),
                    Err(_) => {
                        eprintln!("guard: the pipe has no reader: the end of the capture is missing");
                        return Ok(());
                    }
                },
                written = &mut writing => (written, false),
            };
            let taken;
            (sink, arrived, taken) = written.map_err(anyhow::Error::from)?;
            let is_done = match taken {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                taken => taken.context("the packets cannot be written")?,
            };
            if is_done || is_over {
                break;
            }
        }
        eprintln!("guard: {}", sink.summary(&self));
        Ok(())
    }

    fn request(&self) -> CaptureRequest {
        CaptureRequest {
            all: self.all,
            reasons: (!self.reason.is_empty()).then(|| self.reason.join(",")),
            service: self.service.clone(),
            source: self.from,
            rate: Some(self.rate),
            length: Some(self.snap_length),
            form: if self.write.is_some() {
                Form::Pcapng
            } else {
                Form::Json
            },
        }
    }

    /// Returns on SIGINT or SIGTERM, or when the time of `--for` is over.
    fn end(&self) -> Result<impl Future<Output = ()> + use<>, Failure> {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
        let lasts = self.lasts.map(SignedDuration::unsigned_abs);
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = sleep(lasts.unwrap_or(Duration::MAX)) => {}
            }
        })
    }

    fn open(&self) -> Result<CaptureOutput, Failure> {
        let kind = match &self.write {
            None if self.json => CaptureFormat::Json,
            None => CaptureFormat::Text,
            Some(_) => CaptureFormat::Pcapng,
        };
        let to: Box<dyn Write + Send> = match &self.write {
            Some(path) if path != Path::new("-") => {
                let mut options = File::options();
                // Packets hold private data, so only the owner may read the file.
                options.write(true).create(true).truncate(true).mode(0o600);
                let file = options.open(path);
                let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
                Box::new(BufWriter::new(file))
            }
            _ => Box::new(BufWriter::new(io::stdout())),
        };
        Ok(CaptureOutput {
            kind,
            to,
            packets: 0,
            missed: Missed::default(),
        })
    }
}

/// The output of a capture, with counts for the summary.
struct CaptureOutput {
    kind: CaptureFormat,
    to: Box<dyn Write + Send>,
    packets: u64,
    missed: Missed,
}

#[derive(Clone, Copy)]
enum CaptureFormat {
    Pcapng,
    Json,
    Text,
}

/// The missed packets of each interface, by its number in the capture.
#[derive(Default)]
struct Missed(Vec<u64>);

impl Missed {
    fn set(&mut self, interface: usize, missed: u64) {
        let Self(missed_on) = self;
        if missed_on.len() <= interface {
            missed_on.resize(interface + 1, 0);
        }
        missed_on[interface] = missed;
    }

    fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl CaptureOutput {
    /// Writes the packets that have arrived completely. Returns whether `count` packets are written.
    fn take(&mut self, arrived: &mut BytesMut, count: Option<u64>) -> io::Result<bool> {
        let is_done = |sink: &Self| count.is_some_and(|count| sink.packets >= count);
        while !is_done(self) {
            let Some(length) = (match self.kind {
                CaptureFormat::Pcapng => block_length(arrived),
                CaptureFormat::Json | CaptureFormat::Text => line_length(arrived),
            }) else {
                break;
            };
            let whole = arrived.split_to(length).freeze();
            match self.kind {
                CaptureFormat::Pcapng => self.write_block(&whole)?,
                CaptureFormat::Json | CaptureFormat::Text => self.write_line(&whole)?,
            }
        }
        self.to.flush()?;
        Ok(is_done(self))
    }

    fn write_block(&mut self, block: &Bytes) -> io::Result<()> {
        match Block::of(block) {
            Some(Block::Packet) => self.packets += 1,
            Some(Block::Statistics { interface, missed }) => self.missed.set(interface, missed),
            None => {}
        }
        self.to.write_all(block)
    }

    fn write_line(&mut self, line: &Bytes) -> io::Result<()> {
        match serde_json::from_slice(line)? {
            Line::Missed { missed } => self.missed.set(0, missed),
            Line::Packet(seen) => {
                self.packets += 1;
                match self.kind {
                    CaptureFormat::Text => {
                        writeln!(self.to, "{}", without_controls(&describe(&seen)))?
                    }
                    CaptureFormat::Json | CaptureFormat::Pcapng => self.to.write_all(line)?,
                }
            }
        }
        Ok(())
    }

    fn summary(&self, capture: &CaptureCommand) -> String {
        let packets = match self.packets {
            1 => "1 packet".to_owned(),
            packets => format!("{packets} packets"),
        };
        let to = match &capture.write {
            Some(path) if path != Path::new("-") => format!(" written to {}", path.display()),
            _ => String::new(),
        };
        match self.missed.sum() {
            0 => format!("{packets}{to}, none missed"),
            missed => format!(
                "{packets}{to}, about {} more missed: --rate allows {} per second",
                figures::count(missed as f64),
                capture.rate
            ),
        }
    }
}

/// The length of the first line, with its newline. `None`: it has not arrived completely.
fn line_length(arrived: &[u8]) -> Option<usize> {
    let end = arrived.iter().position(|byte| *byte == b'\n')?;
    Some(end + 1)
}

/// The length of the first block of pcapng (draft-ietf-opsawg-pcapng, section 3.1). `None`: it has not arrived
/// completely.
fn block_length(arrived: &[u8]) -> Option<usize> {
    let length = word(arrived, 4)? as usize;
    (length != 0 && length <= arrived.len()).then_some(length)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The blocks that are counted, as this agent writes them.
enum Block {
    Packet,
    Statistics { interface: usize, missed: u64 },
}

impl Block {
    const PACKET: u32 = 6;
    const STATISTICS: u32 = 5;
    /// The offset of isb_ifdrop's value in a statistics block: after the block's header and interface (12 bytes), its
    /// time (8), isb_ifrecv (12) and the option's own header (4).
    const IFDROP: usize = 36;

    /// `None`: a block of another type.
    fn of(block: &[u8]) -> Option<Self> {
        match word(block, 0)? {
            Self::PACKET => Some(Self::Packet),
            Self::STATISTICS => Some(Self::Statistics {
                interface: word(block, 8)? as usize,
                missed: u64::from(word(block, Self::IFDROP)?)
                    | u64::from(word(block, Self::IFDROP + 4)?) << 32,
            }),
            _ => None,
        }
    }
}

/// `12:00:01.234567 eth0 drop closed_port: 198.51.100.7:40000 > 203.0.113.5:8000 tcp, 74 bytes`.
fn describe(seen: &Captured) -> String {
    let Captured {
        time,
        interface,
        verdict,
        would,
        reason,
        service,
        source,
        destination,
        protocol,
        length,
        one_of,
    } = seen;
    let time = time.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.6f");
    let verdict = match would {
        Some(would) => format!("would {would}"),
        None => verdict.clone(),
    };
    let service = service.as_ref().map(|service| format!(" at {service}"));
    let service = service.unwrap_or_default();
    let end = |end: &Option<String>| end.clone().unwrap_or_else(|| "?".to_owned());
    let protocol = protocol.as_deref().unwrap_or("unknown protocol");
    let sample = (*one_of > 1).then(|| format!(" (one of {one_of})"));
    format!(
        "{time} {interface} {verdict} {reason}{service}: {} > {} {protocol}, {length} bytes{}",
        end(source),
        end(destination),
        sample.unwrap_or_default()
    )
}
