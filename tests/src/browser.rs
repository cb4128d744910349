//! A headless chromium in the guarded host, driven by the DevTools protocol over a pair of pipes
//! (`--remote-debugging-pipe`: a message ends with a zero byte). It uses real time, not virtual time.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Command,
    time::Duration,
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
    /// Opens a page in headless Chromium, in the namespace of the internet.
    pub fn open(lab: &Lab, url: &str) -> Result<Self> {
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
        let page = browser.ask("Target.createTarget", json!({"url": url}))?;
        let attached = browser.ask(
            "Target.attachToTarget",
            json!({"targetId": page["targetId"], "flatten": true}),
        )?;
        let session = attached["sessionId"].as_str().context("no session")?;
        browser.session = Some(session.to_owned());
        Ok(browser)
    }

    /// The page's HTML at this moment.
    pub fn document(&mut self) -> Result<String> {
        let expression = "document.documentElement.outerHTML";
        let answer = self.ask("Runtime.evaluate", json!({"expression": expression}))?;
        let text = answer["result"]["value"].as_str();
        Ok(text.context("the page has no text")?.to_owned())
    }

    /// Takes a screenshot of the whole page, `width` pixels wide.
    pub fn picture(&mut self, width: u32, dark: bool, file: &Path) -> Result<()> {
        let scheme = if dark { "dark" } else { "light" };
        self.ask(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        )?;
        self.resize(width, 600)?;
        let answer = self.ask(
            "Runtime.evaluate",
            json!({"expression": "document.documentElement.scrollHeight"}),
        )?;
        let height = answer["result"]["value"].as_u64().context("no height")?;
        self.resize(width, height as u32)?;
        // The page redraws itself for the new size.
        std::thread::sleep(Duration::from_secs(4));
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
