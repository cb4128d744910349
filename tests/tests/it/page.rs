//! The page, opened in a browser: with the traffic of the lab, and with the answers of a busy hour.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use lab::{browser::Browser, guard::Guard, process::wait_for, topology::FLOODER_V4};
use serde_json::Value;

use crate::{
    clients::{self, Traffic},
    site::Site,
    web::LISTEN,
};

/// Answers in the place of the agent's: an hour with two floods.
const HOUR: &str = include_str!("page/hour.js");

const PATIENCE: Duration = Duration::from_secs(20);

/// The real page of a real agent, with the answers of [`HOUR`].
struct BusyHour {
    browser: Browser,
    _guard: Guard,
    _site: Site,
}

impl BusyHour {
    fn open() -> Self {
        let site = Site::new();
        let _guard = site.start("observe", &format!("web.listen = \"{LISTEN}\"\n"));
        let mut browser = open(&site, HOUR);
        wait_text(&mut browser, "#updated", &["updated"]);
        Self {
            browser,
            _guard,
            _site: site,
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        self.browser.evaluate(expression).unwrap()
    }

    fn text(&mut self, selector: &str) -> String {
        self.browser.text(selector).unwrap()
    }
}

/// Opens the page as soon as the agent serves it.
fn open(site: &Site, script: &str) -> Browser {
    let url = format!("http://{LISTEN}/");
    wait_for(PATIENCE, || {
        let mut command = site.lab.host.command("curl");
        lab::process::run(command.args(["--silent", "--fail", &url]))
    })
    .unwrap();
    Browser::open_with(&site.lab, &url, script).unwrap()
}

/// Waits until the text of an element has all words.
fn wait_text(browser: &mut Browser, selector: &str, words: &[&str]) -> String {
    let found = wait_for(PATIENCE, || {
        let text = browser.text(selector)?;
        for word in words {
            ensure!(text.contains(word), "{word:?} is not in {selector}: {text}");
        }
        Ok(text)
    });
    found.unwrap()
}

/// Whether nothing is wider than the window.
fn require_no_scroll(browser: &mut Browser, width: u32) -> Result<()> {
    let wide = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter((one) => !one.closest('.unseen') && \
         one.getBoundingClientRect().right > innerWidth + .5).map((one) => one.outerHTML.slice(0, 80))",
    )?;
    let scrolls = browser.evaluate("document.documentElement.scrollWidth > innerWidth")?;
    ensure!(
        wide == serde_json::json!([]) && scrolls == false,
        "wider than {width} pixels: {wide}"
    );
    Ok(())
}

/// The numbers of rows whose text has the words.
fn rows(browser: &mut Browser, table: &str) -> Vec<String> {
    let found = browser
        .evaluate(&format!(
            "[...document.querySelectorAll('{table} tr')].map((row) => row.innerText)"
        ))
        .unwrap();
    let rows = found.as_array().unwrap().iter();
    rows.map(|row| row.as_str().unwrap().replace(['\t', '\n'], " "))
        .collect()
}

#[test]
fn the_page_names_the_flooding_source_the_blocked_office_and_the_changes_in_a_browser() {
    let site = Site::new();
    let guard = site.start(
        "enforce",
        &format!("web.listen = \"{LISTEN}\"\n{}", clients::POLICY),
    );
    let _traffic = Traffic::start(&site);
    let mut browser = open(&site, "");
    let enforcing = "Enforcing: packets against the policy are dropped";
    wait_text(&mut browser, "#state", &[enforcing]);
    let office = "198.51.100.20 office";
    let flooder = FLOODER_V4.to_string();
    let over = "connection_limit at web";
    wait_text(&mut browser, "#sources", &[&flooder, office, over]);
    wait_text(&mut browser, "#traffic", &["closed_port", "dropped"]);
    wait_text(&mut browser, "#exposed", &["tcp/80", "open to any by web"]);
    let exposed = browser.text("#exposed").unwrap();
    assert!(!exposed.contains("unknown"), "{exposed}");
    // The chart of an hour gets its first point after ten seconds.
    wait_text(&mut browser, "#chart-text", &["Peaks", "dropped"]);
    let flood = "flood, not over: up to";
    wait_text(&mut browser, "#events", &["agent started, policy", flood]);
    wait_text(&mut browser, "#next", &["guard top"]);

    guard.run(&["mode", "observe"]).unwrap();
    wait_text(&mut browser, "#state", &["Observing: everything passes"]);
    wait_text(&mut browser, "#events", &["mode observe, set by root"]);
    let flags = browser.evaluate("document.querySelectorAll('#plot .flag').length");
    assert_eq!(flags.unwrap(), 2, "the start of the agent and the mode");
    browser.show(390, false).unwrap();
    require_no_scroll(&mut browser, 390).unwrap();

    // The page and its requests reach no other host.
    let asked = "[...new Set(performance.getEntriesByType('resource').map((one) => new URL(one.name).host))]";
    assert_eq!(
        browser.evaluate(asked).unwrap(),
        serde_json::json!([LISTEN])
    );
    let violated = browser.evaluate(
        "new Promise((done) => { document.addEventListener('securitypolicyviolation', (event) => \
         done(event.effectiveDirective)); fetch('http://192.0.2.1/').catch(() => 0); })",
    );
    assert_eq!(violated.unwrap(), "connect-src");
    let violations = browser.evaluate(
        "new Promise((done) => { document.addEventListener('securitypolicyviolation', (event) => \
         done(event.effectiveDirective)); new Image().src = 'http://192.0.2.1/x.png'; })",
    );
    assert_eq!(violations.unwrap(), "img-src");

    // An agent that hangs, goes on, and dies.
    guard.pause().unwrap();
    let silent = "The agent does not answer: nothing below is current";
    wait_text(&mut browser, "#state", &[silent]);
    wait_text(&mut browser, "#updated", &["NOT UPDATED since"]);
    wait_text(&mut browser, "#because", &["No answer within 5 s."]);
    wait_text(&mut browser, "#next", &["guard status"]);
    guard.resume().unwrap();
    wait_text(&mut browser, "#state", &["Observing"]);
    guard.kill().unwrap();
    wait_text(&mut browser, "#state", &[silent]);
    wait_text(&mut browser, "#because", &["No connection: the agent"]);
}

#[test]
fn a_flood_does_not_flatten_what_passes_and_each_value_is_read_by_pointer_keyboard_and_table() {
    let mut hour = BusyHour::open();
    let texts = hour.evaluate(
        "[...document.querySelectorAll('#plot text')].map((one) => one.textContent).join('|')",
    );
    let texts = texts.as_str().unwrap();
    for text in [
        "Passed, packets/s|",
        "Dropped and would be dropped, packets/s|",
        "|600|",
        "|6k|",
        "|flood",
    ] {
        assert!(texts.contains(text), "{text} is not in {texts}");
    }
    assert_eq!(hour.text("#hour-title"), "The last hour");
    let swing = hour.evaluate("document.querySelector('#plot path.line.pass').getBBox().height");
    assert!(swing.as_f64().unwrap() > 20.0, "{swing}");
    let drawn = hour.evaluate(
        "['.flag', 'rect.flood'].map((one) => document.querySelectorAll('#plot ' + one).length)",
    );
    assert_eq!(drawn, serde_json::json!([4, 2]));

    hour.browser.point("#chart", 0.985, 0.5).unwrap();
    let tip = hour.text("#tip");
    for words in [
        "passed ",
        "dropped 4",
        "would be dropped 0",
        "packets/s",
        "flood of up to",
    ] {
        assert!(tip.contains(words), "{words} is not in {tip}");
    }
    hour.browser.point("#chart", 0.4, 0.5).unwrap();
    let tip = hour.text("#tip");
    assert!(!tip.contains("flood"), "{tip}");
    // The values stay at their time when the chart is drawn again.
    let asked = hour.evaluate("window.asked.length").as_u64().unwrap();
    wait_for(PATIENCE, || {
        let now = hour.browser.evaluate("window.asked.length")?;
        ensure!(now.as_u64() > Some(asked + 5), "the page asks no more");
        Ok(())
    })
    .unwrap();
    assert_eq!(hour.text("#tip"), tip);

    hour.evaluate("document.querySelector('#as-table').click()");
    let table = rows(&mut hour.browser, "#chart-rows");
    assert_eq!(table.len(), 360);
    hour.evaluate("document.querySelector('#chart').focus()");
    for (keys, row) in [
        (["End", "ArrowRight"].as_slice(), 0),
        (&["ArrowLeft"], 1),
        (&["PageUp", "ArrowRight"], 10),
        (&["Home"], 359),
    ] {
        for key in keys {
            hour.browser.press(key).unwrap();
        }
        let spoken = hour.text("#chart-value");
        let bare: String = spoken
            .split("packets/s")
            .next()
            .unwrap()
            .replace(": passed", "");
        let row = &table[row];
        assert!(row.starts_with(bare.trim()), "{spoken} is not {row}");
    }
    hour.browser.press("Escape").unwrap();
    assert_eq!(hour.text("#chart-value"), "");
    let heads = hour.evaluate(
        "[...document.querySelectorAll('#chart-table [scope]')].slice(0, 6).map((one) => one.scope)",
    );
    assert_eq!(
        heads,
        serde_json::json!(["col", "col", "col", "col", "col", "row"])
    );
    let caption = hour.text("#chart-caption");
    assert!(
        caption.starts_with("The last hour, packets/s: "),
        "{caption}"
    );

    hour.evaluate("document.querySelector('#as-log').click()");
    assert_eq!(hour.evaluate("location.hash"), "#scale=log");
    let texts = hour.evaluate(
        "[...document.querySelectorAll('#plot text')].map((one) => one.textContent).join('|')",
    );
    let texts = texts.as_str().unwrap();
    assert!(
        texts.contains("Passed, packets/s, log scale|0|1|10|100|1k"),
        "{texts}"
    );
}

#[test]
fn a_chosen_service_is_alone_in_chart_and_tables_and_stays_after_a_reload() {
    let mut hour = BusyHour::open();
    let all = hour.text("#chart-text");
    // The tables are read apart from the chart.
    wait_for(Duration::from_secs(60), || {
        let traffic = rows(&mut hour.browser, "#traffic");
        anyhow::ensure!(traffic.len() > 8, "{traffic:?}");
        Ok(())
    })
    .unwrap();
    hour.evaluate(
        "(() => { const select = document.querySelector('#service'); select.value = 'web'; \
         select.dispatchEvent(new Event('change')); })()",
    );
    assert_eq!(hour.evaluate("location.hash"), "#service=web");
    for is_reloaded in [false, true] {
        if is_reloaded {
            hour.evaluate("location.reload()");
            wait_text(&mut hour.browser, "#updated", &["updated"]);
        }
        wait_text(&mut hour.browser, "#filtered", &["service web alone"]);
        let traffic = rows(&mut hour.browser, "#traffic");
        assert_eq!(traffic.len(), 2, "{traffic:?}");
        assert!(
            traffic.iter().all(|row| row.contains(" web ")),
            "{traffic:?}"
        );
        let sources = rows(&mut hour.browser, "#sources");
        assert_eq!(sources.len(), 1, "{sources:?}");
        assert!(sources[0].contains("office"), "{sources:?}");
        assert_ne!(hour.text("#chart-text"), all);
        assert_eq!(
            hour.evaluate("document.querySelector('#service').value"),
            "web"
        );
    }
    hour.evaluate("location.hash = '#service=-'");
    wait_text(&mut hour.browser, "#filtered", &["no service alone"]);
    wait_text(&mut hour.browser, "#traffic", &["closed_port", "tcp/8000"]);
    hour.evaluate("location.hash = '#service=%E0%A4%A'");
    wait_text(
        &mut hour.browser,
        "#traffic",
        &["No packet was counted for"],
    );
}

#[test]
fn numbers_have_their_units_and_times_are_for_people() {
    let mut hour = BusyHour::open();
    wait_text(&mut hour.browser, "#dropped", &["k packets/s"]);
    wait_text(&mut hour.browser, "#bits", &["Mbit/s"]);
    assert_eq!(hour.text("#would"), "0 packets/s");
    let is_dim = hour.evaluate("document.querySelector('#would').className");
    assert_eq!(is_dim, "zero");
    wait_text(
        &mut hour.browser,
        "#sources",
        &["<16", "closed_port tcp/8000"],
    );
    let ports = wait_text(&mut hour.browser, "#traffic .more", &["Total by port: "]);
    for port in ["tcp/8000 ~", "tcp/2375 ~", "others ~"] {
        assert!(ports.contains(port), "{ports}");
    }
    // The process behind the port is not known, the service of the policy is.
    wait_text(&mut hour.browser, "#exposed", &["service dns"]);
    let facts = hour.text("#facts");
    for words in [
        "loaded 41 min ago (",
        "for 41 min (since ",
        "set 22 min ago (",
    ] {
        assert!(facts.contains(words), "{words} is not in {facts}");
    }
    hour.evaluate(
        "{ const trial = { path: '/tmp/new.toml', by: 'ana', back_to: '/etc/guard/guard.toml', \
         until: new Date(Date.now() + 272000).toISOString() }; const before = window.answers.status(); \
         window.answers.status = () => ({ ...before, trial }); }",
    );
    wait_text(&mut hour.browser, "#facts", &["goes back in 4:"]);
    wait_text(&mut hour.browser, "#next", &["guard confirm"]);
    let text = hour.text("body");
    for word in text.split_whitespace() {
        let digits = word.split('.').nth(1).unwrap_or_default();
        let digits = digits.chars().take_while(char::is_ascii_digit).count();
        assert!(digits < 4 || word.matches('.').count() > 1, "{word}");
    }
}

#[test]
fn what_is_not_current_does_not_look_current() {
    let mut hour = BusyHour::open();
    let is_stale = "document.body.classList.contains('stale')";
    assert_eq!(hour.evaluate(is_stale), false);
    hour.evaluate("document.querySelector('#pause').click()");
    wait_text(
        &mut hour.browser,
        "#state",
        &["Paused at", "It was: Enforcing"],
    );
    wait_text(&mut hour.browser, "#updated", &["PAUSED: as of", "ago"]);
    assert_eq!(hour.evaluate(is_stale), true);
    hour.evaluate("document.querySelector('#pause').click()");
    wait_text(&mut hour.browser, "#updated", &["updated"]);
    assert_eq!(hour.evaluate(is_stale), false);

    // Counters that nobody records any more: the page must not show the last point as now.
    hour.evaluate(
        "{ const before = window.answers.history; window.answers.history = () => ({ ...before(), \
         now: new Date(Date.now() + 60000).toISOString() }); }",
    );
    wait_text(&mut hour.browser, "#late", &["No counters were read since"]);
    wait_text(&mut hour.browser, "#clocks", &["differ by 1 min"]);

    hour.evaluate("window.fetch = async () => new Response('the map is gone', { status: 500 })");
    let error = "The agent answers with an error: nothing below is current";
    wait_text(&mut hour.browser, "#state", &[error]);
    wait_text(&mut hour.browser, "#because", &["the map is gone"]);
    wait_text(&mut hour.browser, "#updated", &["NOT UPDATED since"]);
    assert_eq!(hour.evaluate("document.title"), "guard: NO ANSWER");
    let opacity = "getComputedStyle(document.querySelector('.numbers')).opacity";
    assert_eq!(hour.evaluate(opacity), "0.5");

    // A request that is never answered: the age alone makes it loud.
    hour.evaluate("location.reload()");
    wait_text(&mut hour.browser, "#updated", &["updated"]);
    hour.evaluate("window.fetch = () => new Promise(() => {})");
    let silent = "The agent does not answer: nothing below is current";
    wait_text(&mut hour.browser, "#state", &[silent]);
}

/// `GUARD_SCREENSHOTS=FOLDER` keeps the pictures of the documentation.
#[test]
fn the_page_fits_telephones_and_desktops_in_light_and_in_dark() {
    let mut hour = BusyHour::open();
    wait_text(&mut hour.browser, "#exposed", &["tcp/443"]);
    wait_text(&mut hour.browser, "#dropped", &["packets/s"]);
    let look = "guard explain --from 198.51.100.66 --to tcp/8000";
    wait_text(&mut hour.browser, "#next", &[look]);
    let mut backs = Vec::new();
    for (name, width, dark) in [
        ("page.png", 1_280, false),
        ("page-dark.png", 1_280, true),
        ("page-telephone.png", 390, false),
        ("page-telephone-dark.png", 390, true),
    ] {
        hour.browser.show(width, dark).unwrap();
        require_no_scroll(&mut hour.browser, width).unwrap();
        let contrasts = hour.evaluate(
            "(() => { const style = getComputedStyle(document.documentElement); \
             const light = (name) => { const hex = style.getPropertyValue(name).trim().slice(1); \
             const full = hex.length === 3 ? [...hex].map((one) => one + one).join('') : hex; \
             const parts = [0, 2, 4].map((at) => parseInt(full.slice(at, at + 2), 16) / 255) \
             .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4); \
             return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2]; }; \
             return ['--text', '--dim', '--pass', '--drop', '--would'].flatMap((ink) => \
             ['--card', '--back'].map((paper) => { const [a, b] = [light(ink), light(paper)]; \
             return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); })); })()",
        );
        for contrast in contrasts.as_array().unwrap() {
            assert!(contrast.as_f64().unwrap() >= 4.5, "{name}: {contrasts}");
        }
        backs.push(hour.evaluate("getComputedStyle(document.body).backgroundColor"));
        if let Some(folder) = std::env::var_os("GUARD_SCREENSHOTS") {
            // The values of a point, as when the pointer is on it.
            hour.evaluate(if width > 1_000 {
                "select(205, false)"
            } else {
                "unselect()"
            });
            let file = Path::new(&folder).join(name);
            hour.browser.picture(width, dark, &file).unwrap();
        }
    }
    assert_ne!(backs[0], backs[1]);
    assert_eq!(backs[0], backs[2]);
}
