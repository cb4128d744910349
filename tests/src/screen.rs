//! A terminal on the guarded host, made by tmux: tests send keys and read the text.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{Daemon, run, wait_for},
    topology::Lab,
};

/// The terminal. When this is dropped, it ends with the programs in it.
pub struct TmuxScreen {
    server: Daemon,
    socket: PathBuf,
}

impl TmuxScreen {
    /// Starts a command in a terminal of this size.
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
        // After the program has ended, its last screen can still be read.
        screen.tmux(&["set-option", "-g", "remain-on-exit", "on"])?;
        let session = ["new-session", "-d", "-x", &columns, "-y", &lines];
        let command = command.iter().map(String::as_str);
        screen.tmux(&session.into_iter().chain(command).collect::<Vec<_>>())?;
        Ok(screen)
    }

    /// Types keys, by tmux' names: `Down`, `Enter`, `q`.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat())?;
        Ok(())
    }

    /// The screen once two reads are equal: tmux also shows a frame that is half written.
    pub fn text(&self) -> Result<String> {
        let mut before = self.captured()?;
        wait_for(Duration::from_secs(20), || {
            let text = self.captured()?;
            let is_settled = text == before;
            before = text;
            ensure!(is_settled, "the screen still changes:\n{before}");
            Ok(before.clone())
        })
    }

    fn captured(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen's text with the escape sequences for colours.
    pub fn coloured(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Changes the size of the terminal.
    pub fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &lines])?;
        Ok(())
    }

    /// Waits until all these words are on the screen, and returns its text.
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

    /// Waits until the program has ended, and returns its exit code; `None` if tmux does not have it.
    pub fn wait_for_end(&self) -> Result<Option<i32>> {
        wait_for(Duration::from_secs(20), || {
            let state = ["display-message", "-p", "#{pane_dead} #{pane_dead_status}"];
            let state = self.tmux(&state)?;
            let code = state.trim().strip_prefix('1');
            let code = code.with_context(|| format!("the program still runs: {state}"))?;
            Ok(code.trim().parse().ok())
        })
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut tmux = Command::new("tmux");
        run(tmux.arg("-S").arg(&self.socket).args(arguments))
    }
}
