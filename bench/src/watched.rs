//! The cost of a packet while watchers run, compared with the same packets without them. The watchers are `guard top`
//! on a terminal, the requests of the page, and a capture, all at once, from the release binary. The program is the one
//! that the agent has attached.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, loaded_programs};
use guard::api::client::Client;
use lab::{
    guard::{Guard, binary, location_options},
    process::{Daemon, wait_for},
    screen::TmuxScreen,
    topology::{INTERFACE, Lab},
};
use tokio::runtime::Builder;

use crate::{
    RowFilter,
    beside::{Beside, Numbers, Varied},
    frames::{PacketAddresses, syn},
    quiet::{self, Sample},
    row::{Bar, Row, RowUnit},
    run::{Run, XDP_DROP, XDP_PASS, run},
    spread::Spread,
};

const ALONE: &str = "watched";
const WHOLE: &str = "watched-whole";

pub const NAMES: [&str; 2] = [ALONE, WHOLE];

/// The address of the page and the metrics, in the guarded host's namespace.
const WEB: &str = "127.0.0.1:9469";

/// A port that no service lists.
const CLOSED_PORT: u16 = 9_999;

/// The source addresses: all of 10.0.0.0/8.
const SOURCES: Numbers = Numbers {
    first: 0x0a00_0000,
    count: 1 << 24,
};

/// The number of turns with and without watchers, and the measurements in each.
const TURNS: usize = 16;
const MEASUREMENTS: usize = 20;
const PACKETS: u32 = 400_000;

/// Time for each watcher to send its first request.
const SETTLED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measured(asked: &RowFilter) -> Result<Vec<Row>> {
    if !NAMES.into_iter().any(|name| asked.is(name)) {
        return Ok(Vec::new());
    }
    let lab = Lab::new()?;
    let guard = Guard::start(&lab, &policy())?;
    let flood = ClosedPortFlood::of(&lab)?;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        lab::interrupt::check()?;
        let watchers = Watchers::start(&lab)?;
        let watched = flood.measure()?;
        watchers.end()?;
        turns.push([watched, flood.measure()?]);
    }
    guard.remove()?;
    let empties = turns.iter().flatten().flatten().map(|sample| sample.empty);
    let floor = quiet::undisturbed(empties);
    let ratios = |floor| -> (Vec<f64>, Vec<f64>) {
        let costs = turns.iter().filter_map(|[watched, unwatched]| {
            Some((Cost::of(watched, floor)?, Cost::of(unwatched, floor)?))
        });
        costs
            .map(|(watched, unwatched)| {
                (
                    watched.whole / unwatched.whole,
                    watched.alone / unwatched.alone,
                )
            })
            .unzip()
    };
    let (mut whole, mut alone) = ratios(floor);
    if whole.is_empty() {
        // All measurements were disturbed: count them all.
        (whole, alone) = ratios(f64::INFINITY);
    }
    let row = |name, about, ratios, bar| -> Result<Row> {
        let spread = Spread::of(ratios).context("no turn was measured")?;
        let names = (name, "Watched", about);
        Ok(Row::new(names, RowUnit::Ratio, spread, bar, None))
    };
    let rows = [
        row(
            ALONE,
            "closed port, random sources: with top, the page and a capture, to without",
            alone,
            None,
        )?,
        row(
            WHOLE,
            "the same, with the empty program's time and the wrapper's",
            whole,
            Some(Bar::AtMost(1.05)),
        )?,
    ];
    Ok(rows.into_iter().filter(|row| asked.is(&row.name)).collect())
}

fn policy() -> String {
    format!(
        "mode = \"enforce\"\nscope = \"host\"\ninterfaces = [\"{INTERFACE}\"]\n\
         [docker]\nsocket = \"\"\n[web]\nlisten = \"{WEB}\"\n\
         [[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nlimit.packets = \"1k/s\"\n"
    )
}

/// The cost of a packet, in nanoseconds.
struct Cost {
    /// The whole time, with the kernel's loop, the wrapper and the call of the program.
    whole: f64,
    /// The time above the empty program.
    alone: f64,
}

impl Cost {
    /// The median cost of the undisturbed samples. `None` if there are too few.
    fn of(samples: &[Sample], floor: f64) -> Option<Self> {
        let samples = quiet::counting(samples, floor, MEASUREMENTS)?;
        let median = |costs: Vec<f64>| Spread::of(costs).map(|spread| spread.median);
        let whole = samples.iter().map(|sample| sample.net + sample.empty);
        Some(Self {
            whole: median(whole.collect())?,
            alone: median(samples.iter().map(|sample| sample.net).collect())?,
        })
    }
}

/// Packets to a closed port, run through the attached program.
struct ClosedPortFlood {
    program: Beside,
    empty: Beside,
    /// The wrapped programs: they must live as long as the wrappers that call them.
    _wrapped: (ProgramFd, Beside),
}

impl ClosedPortFlood {
    fn of(lab: &Lab) -> Result<Self> {
        let client = Client::new(&lab.folder().join("guard.sock"))?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let status = runtime.block_on(client.status())?;
        let [interface] = &status.interfaces[..] else {
            anyhow::bail!(
                "there must be one guarded interface, not {}",
                status.interfaces.len()
            );
        };
        let attached = loaded_programs()
            .filter_map(Result::ok)
            .find(|program| program.id() == interface.program_id)
            .context("the attached program is not among the loaded programs")?
            .fd()?;
        let empty = Beside::empty()?;
        let varied = Varied::Source(SOURCES);
        Ok(Self {
            program: Beside::randomised(&attached, varied)?,
            empty: Beside::randomised(empty.program()?.fd()?, varied)?,
            _wrapped: (attached, empty),
        })
    }

    fn measure(&self) -> Result<Vec<Sample>> {
        let frame = syn(PacketAddresses::V4, CLOSED_PORT);
        let mut samples = Vec::new();
        for _ in 0..MEASUREMENTS {
            let empty = run(self.empty.program()?, &frame, PACKETS)?;
            let Run { ns, verdict } = run(self.program.program()?, &frame, PACKETS)?;
            ensure!(
                (empty.verdict, verdict) == (XDP_PASS, XDP_DROP),
                "the empty program returned {}, guard's {verdict}",
                empty.verdict
            );
            samples.push(Sample {
                net: ns - empty.ns,
                empty: empty.ns,
                is_memory_quiet: true,
            });
        }
        Ok(samples)
    }
}

/// The running watchers.
struct Watchers {
    top: TmuxScreen,
    page: Daemon,
    capture: Daemon,
    logs: [PathBuf; 2],
}

impl Watchers {
    fn start(lab: &Lab) -> Result<Self> {
        let logs = ["page.log", "capture.log"].map(|name| lab.folder().join(name));
        let [page_log, capture_log] = &logs;
        let guard = |arguments: &[&str]| -> Result<Vec<String>> {
            let path = binary()?.display().to_string();
            let options = location_options(lab).into_iter();
            let options = options.map(|option| option.to_string_lossy().into_owned());
            let arguments = arguments.iter().map(|argument| (*argument).to_owned());
            Ok([path].into_iter().chain(options).chain(arguments).collect())
        };
        // The page's requests: all of them every second.
        let requests = format!(
            "while :; do for what in status counters talkers history; do \
             curl --silent --show-error --fail http://{WEB}/v1/$what || exit; done; sleep 1; done"
        );
        let capture = guard(&["capture", "--all"])?;
        let (program, arguments) = capture
            .split_first()
            .context("the capture command is empty")?;
        let watchers = Self {
            top: TmuxScreen::start(lab, (80, 24), &guard(&["top"])?)?,
            page: Daemon::start(lab.host.command("sh").args(["-c", &requests]), page_log)?,
            capture: Daemon::start(lab.host.command(program).args(arguments), capture_log)?,
            logs,
        };
        watchers.top.wait_for(&["enforcing"])?;
        thread::sleep(SETTLED);
        Ok(watchers)
    }

    /// Ends all watchers.
    ///
    /// # Errors
    /// A watcher has ended early or has not seen the dropped packets.
    fn end(self) -> Result<()> {
        let Self {
            top,
            mut page,
            mut capture,
            logs: [page_log, capture_log],
        } = self;
        page.check_alive()?;
        capture.check_alive()?;
        wait_for(PATIENCE, || {
            let page = fs::read_to_string(&page_log)?;
            ensure!(page.contains("closed_port"), "the page got {page:?}");
            let capture = fs::read_to_string(&capture_log)?;
            ensure!(
                capture.contains("closed_port"),
                "the capture printed {capture:?}"
            );
            let text = top.text()?;
            ensure!(text.contains("closed_port"), "top shows {text}");
            Ok(())
        })?;
        capture.stop()?;
        page.stop()?;
        Ok(())
    }
}
