//! What a packet costs while people watch: `guard top` on a terminal, what the page asks for, and a capture, all
//! at once, against the same packets without them. The program is the one that the agent has attached, the
//! watchers are the commands of the release binary.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, loaded_programs};
use guard::api::client::Client;
use lab::{
    guard::{Guard, binary, whereabouts},
    process::{Daemon, wait_for},
    screen::Screen,
    topology::{INTERFACE, Lab},
};
use tokio::runtime::Builder;

use crate::{
    Asked,
    beside::{Beside, Numbers, Varied},
    frames::{Network, syn},
    report::{Bar, Row, Unit},
    run::{Run, XDP_DROP, XDP_PASS, run},
    spread::Spread,
};

pub const NAME: &str = "watched";

/// What the page and the metrics listen on, inside of the guarded host.
const WEB: &str = "127.0.0.1:9469";

/// Nobody lists it.
const CLOSED_PORT: u16 = 9_999;

/// From anywhere in 10.0.0.0/8.
const SOURCES: Numbers = Numbers {
    first: 0x0a00_0000,
    count: 1 << 24,
};

/// With and without watchers in turn, so many times, and what is measured in each.
const TURNS: usize = 16;
const MEASUREMENTS: usize = 20;
const PACKETS: u32 = 400_000;

/// Until everything that watches has asked at least once.
const SETTLED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measured(asked: &Asked) -> Result<Option<Row>> {
    if !asked.is(NAME) {
        return Ok(None);
    }
    let lab = Lab::new()?;
    let guard = Guard::start(&lab, &policy())?;
    let flood = Flood::of(&lab)?;
    let mut ratios = Vec::new();
    for _ in 0..TURNS {
        lab::interrupt::check()?;
        let watchers = Watchers::start(&lab)?;
        let watched = flood.cost()?;
        watchers.end()?;
        ratios.push(watched / flood.cost()?);
    }
    guard.remove()?;
    let spread = Spread::of(ratios).context("there is no turn")?;
    let names = (
        NAME,
        "Watched",
        "closed port, random sources: top, the page and a capture at once, to nobody",
    );
    let bar = Some(Bar::AtMost(1.05));
    Ok(Some(Row::new(names, Unit::Ratio, spread, bar, None)))
}

fn policy() -> String {
    format!(
        "mode = \"enforce\"\nscope = \"host\"\ninterfaces = [\"{INTERFACE}\"]\n\
         [docker]\nsocket = \"\"\n[web]\nlisten = \"{WEB}\"\n\
         [[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nlimit.packets = \"1k/s\"\n"
    )
}

/// Packets to a closed port, run through the attached program.
struct Flood {
    program: Beside,
    empty: Beside,
    /// The wrappers call them; they live as long.
    _wrapped: (ProgramFd, Beside),
}

impl Flood {
    fn of(lab: &Lab) -> Result<Self> {
        let client = Client::new(&lab.folder().join("guard.sock"))?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let status = runtime.block_on(client.status())?;
        let [interface] = &status.interfaces[..] else {
            anyhow::bail!("one interface is guarded, not {}", status.interfaces.len());
        };
        let attached = loaded_programs()
            .filter_map(Result::ok)
            .find(|program| program.id() == interface.program_id)
            .context("the program that is attached is not in the kernel")?
            .fd()?;
        let empty = Beside::empty()?;
        let varied = Varied::Source(SOURCES);
        Ok(Self {
            program: Beside::randomised(&attached, varied)?,
            empty: Beside::randomised(empty.program()?.fd()?, varied)?,
            _wrapped: (attached, empty),
        })
    }

    /// In nanoseconds a packet, more than the empty program.
    fn cost(&self) -> Result<f64> {
        let frame = syn(Network::V4, CLOSED_PORT);
        let mut costs = Vec::new();
        for _ in 0..MEASUREMENTS {
            let empty = run(self.empty.program()?, &frame, PACKETS)?;
            let Run { ns, verdict } = run(self.program.program()?, &frame, PACKETS)?;
            ensure!(
                (empty.verdict, verdict) == (XDP_PASS, XDP_DROP),
                "the empty program returned {}, guard's {verdict}",
                empty.verdict
            );
            costs.push(ns - empty.ns);
        }
        Ok(Spread::of(costs).context("nothing was measured")?.median)
    }
}

/// Everything that shows people what goes on.
struct Watchers {
    top: Screen,
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
            let options = whereabouts(lab).into_iter();
            let options = options.map(|option| option.to_string_lossy().into_owned());
            let arguments = arguments.iter().map(|argument| (*argument).to_owned());
            Ok([path].into_iter().chain(options).chain(arguments).collect())
        };
        // As the page asks: all of this every second.
        let asks = format!(
            "while :; do for what in status counters talkers history; do \
             curl --silent --show-error --fail http://{WEB}/v1/$what || exit; done; sleep 1; done"
        );
        let capture = guard(&["capture", "--all"])?;
        let (program, arguments) = capture.split_first().context("there is no command")?;
        let watchers = Self {
            top: Screen::start(lab, (80, 24), &guard(&["top"])?)?,
            page: Daemon::start(lab.host.command("sh").args(["-c", &asks]), page_log)?,
            capture: Daemon::start(lab.host.command(program).args(arguments), capture_log)?,
            logs,
        };
        watchers.top.wait_for(&["enforcing"])?;
        thread::sleep(SETTLED);
        Ok(watchers)
    }

    /// Ends them all. What one of them did not watch is an error.
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
            ensure!(page.contains("closed_port"), "the page was told {page:?}");
            let capture = fs::read_to_string(&capture_log)?;
            ensure!(capture.contains("closed_port"), "captured is {capture:?}");
            let text = top.text()?;
            ensure!(text.contains("closed_port"), "top shows {text}");
            Ok(())
        })?;
        capture.stop()?;
        page.stop()?;
        Ok(())
    }
}
