//! A headless chromium in the guarded host, driven by the DevTools protocol over a pair of pipes
//! (`--remote-debugging-pipe`: a message ends with a zero byte). It uses real time, not virtual time.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use crate::{process::Daemon, topology::Lab};

/// An open page. The browser ends when this is dropped.
pub struct Browser {
    requests: File,
    answers: BufReader<File>,
    session: Option<String>,
    asked: u64,
    _chromium: Daemon,
}

impl Browser {
    /// Opens a page in headless Chromium, in the guarded host.
    pub fn open(lab: &Lab, url: &str) -> Result<Self> {
        Self::open_with(lab, url, "")
    }

    /// Opens a page, and runs a script before those of the page whenever it is loaded.
    pub fn open_with(lab: &Lab, url: &str, script: &str) -> Result<Self> {
        let folder = lab.folder().join("browser");
        fs::create_dir_all(&folder)?;
        let [requests, answers] = ["requests", "answers"].map(|name| folder.join(name));
        for pipe in [&requests, &answers] {
            if pipe.exists() {
                fs::remove_file(pipe)?;
            }
            mkfifo(pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        let mut command = lab.host.command("sh");
        command
            .args(["-c", "exec \"$@\" 3<\"$REQUESTS\" 4>\"$ANSWERS\"", "sh"])
            .args(["chromium", "--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!(
                "--user-data-dir={}",
                folder.join("profile").display()
            ))
            // Chromium leaves its sockets there when it is killed.
            .env("TMPDIR", &folder)
            .env("REQUESTS", &requests)
            .env("ANSWERS", &answers);
        let _chromium = Daemon::start(&mut command, &folder.join("chromium.log"))?;
        // Opening a pipe waits for the other end, so the order is the same as in the shell.
        let requests = File::options().write(true).open(&requests)?;
        let answers = BufReader::new(File::open(&answers)?);
        let mut browser = Self {
            requests,
            answers,
            session: None,
            asked: 0,
            _chromium,
        };
        let page = browser.ask("Target.createTarget", json!({"url": "about:blank"}))?;
        let attached = browser.ask(
            "Target.attachToTarget",
            json!({"targetId": page["targetId"], "flatten": true}),
        )?;
        let session = attached["sessionId"].as_str().context("no session")?;
        browser.session = Some(session.to_owned());
        browser.ask("Page.enable", json!({}))?;
        browser.ask(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": script}),
        )?;
        browser.ask("Page.navigate", json!({"url": url}))?;
        Ok(browser)
    }

    /// The value of an expression in the page, or of its promise.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let answer = self.ask(
            "Runtime.evaluate",
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true}),
        )?;
        let failed = &answer["exceptionDetails"];
        ensure!(failed.is_null(), "{expression}: {failed}");
        Ok(answer["result"]["value"].clone())
    }

    /// The text of the first element that a CSS selector matches, as it is shown.
    pub fn text(&mut self, selector: &str) -> Result<String> {
        let found = self.evaluate(&format!("document.querySelector({selector:?}).innerText"))?;
        let text = found.as_str();
        Ok(text
            .with_context(|| format!("{selector} has no text"))?
            .to_owned())
    }

    /// Presses a key that writes no text, such as `ArrowLeft` or `Tab`.
    pub fn press(&mut self, key: &str) -> Result<()> {
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key});
            self.ask("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Moves the pointer over an element, to this share of its width and height.
    pub fn point(&mut self, selector: &str, across: f64, down: f64) -> Result<()> {
        let place = self.evaluate(&format!(
            "(() => {{ const found = document.querySelector({selector:?}); found.scrollIntoView(); \
             const box = found.getBoundingClientRect(); \
             return [box.left + {across} * box.width, box.top + {down} * box.height]; }})()"
        ))?;
        let event = json!({"type": "mouseMoved", "x": place[0], "y": place[1]});
        self.ask("Input.dispatchMouseEvent", event)?;
        Ok(())
    }

    /// Gives the page this width, and the light or dark colours that the user prefers.
    pub fn show(&mut self, width: u32, dark: bool) -> Result<()> {
        let scheme = if dark { "dark" } else { "light" };
        self.ask(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        )?;
        self.resize(width, 600)?;
        // A page that redraws itself for its new size has done so after two frames.
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))",
        )?;
        Ok(())
    }

    /// The page's HTML at this moment.
    pub fn document(&mut self) -> Result<String> {
        let found = self.evaluate("document.documentElement.outerHTML")?;
        Ok(found.as_str().context("the page has no text")?.to_owned())
    }

    /// Takes a screenshot of the whole page, `width` pixels wide.
    pub fn picture(&mut self, width: u32, dark: bool, file: &Path) -> Result<()> {
        self.show(width, dark)?;
        let height = self.evaluate("document.documentElement.scrollHeight")?;
        let height = height.as_u64().context("no height")?;
        self.resize(width, u32::try_from(height)?)?;
        let answer = self.ask("Page.captureScreenshot", json!({"format": "png"}))?;
        let data = answer["data"].as_str().context("no picture")?;
        let text = file.with_extension("base64");
        fs::write(&text, data)?;
        let decoded = Command::new("base64").arg("--decode").arg(&text).output()?;
        fs::remove_file(&text)?;
        ensure!(decoded.status.success(), "the picture cannot be decoded");
        Ok(fs::write(file, decoded.stdout)?)
    }

    fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", metrics)?;
        Ok(())
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.asked += 1;
        let mut request = json!({"id": self.asked, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        write!(self.requests, "{request}\0")?;
        loop {
            let mut message = Vec::new();
            self.answers.read_until(0, &mut message)?;
            ensure!(message.pop() == Some(0), "the browser has ended");
            let message: Value = serde_json::from_slice(&message)?;
            // Messages with another id are events.
            if message["id"] == self.asked {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
        }
    }
}
