//! A terminal of so many columns and lines on the guarded host, by tmux: keys in, text out.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{Daemon, run, wait_for},
    topology::Lab,
};

/// It ends when this is dropped, with what runs in it.
pub struct TmuxScreen {
    server: Daemon,
    socket: PathBuf,
}

impl TmuxScreen {
    pub fn start(lab: &Lab, (columns, lines): (u16, u16), command: &[String]) -> Result<Self> {
        let socket = lab.folder().join("tmux");
        let mut tmux = lab.host.command("tmux");
        tmux.arg("-S")
            .arg(&socket)
            .args(["-f", "/dev/null", "-u", "-D"]);
        tmux.env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .env_remove("NO_COLOR");
        let server = Daemon::start(&mut tmux, &lab.folder().join("tmux.log"))?;
        let mut screen = Self { server, socket };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        wait_for(Duration::from_secs(5), || {
            screen.server.check_alive()?;
            screen.tmux(&["show-options", "-g"])
        })?;
        // What it said last is worth reading.
        screen.tmux(&["set-option", "-g", "remain-on-exit", "on"])?;
        let session = ["new-session", "-d", "-x", &columns, "-y", &lines];
        let command = command.iter().map(String::as_str);
        screen.tmux(&session.into_iter().chain(command).collect::<Vec<_>>())?;
        Ok(screen)
    }

    /// Types keys as tmux names them: `Down`, `Enter`, `q`.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat())?;
        Ok(())
    }

    /// The screen when nothing is being drawn: tmux shows a frame also while half of it is written.
    pub fn text(&self) -> Result<String> {
        let mut before = self.captured()?;
        wait_for(Duration::from_secs(20), || {
            let text = self.captured()?;
            let is_settled = text == before;
            before = text;
            ensure!(is_settled, "the screen goes on changing:\n{before}");
            Ok(before.clone())
        })
    }

    fn captured(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the sequences that colour it.
    pub fn coloured(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    pub fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &lines])?;
        Ok(())
    }

    /// Waits until every one of these is on it, and returns it.
    pub fn wait_for(&self, words: &[&str]) -> Result<String> {
        wait_for(Duration::from_secs(20), || {
            let text = self.text()?;
            for word in words {
                ensure!(
                    text.contains(word),
                    "{word:?} is not on the screen:\n{text}"
                );
            }
            Ok(text)
        })
    }

    /// Waits until the program has ended, and returns its exit code; `None`: tmux has not been told of it.
    pub fn wait_for_end(&self) -> Result<Option<i32>> {
        wait_for(Duration::from_secs(20), || {
            let state = ["display-message", "-p", "#{pane_dead} #{pane_dead_status}"];
            let state = self.tmux(&state)?;
            let code = state.trim().strip_prefix('1');
            let code = code.with_context(|| format!("it goes on: {state}"))?;
            Ok(code.trim().parse().ok())
        })
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut tmux = Command::new("tmux");
        run(tmux.arg("-S").arg(&self.socket).args(arguments))
    }
}
