//! Checks the pages (README, `docs/`): their links have targets, and guard accepts the commands in them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lab::process::run as output;
use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// Pages about the past: their commands and links were right then.
const HISTORY: [&str; 1] = ["CHANGELOG.md"];

/// Pages in Spanish, and the English page that each follows.
const TRANSLATIONS: [(&str, &str); 3] = [
    ("README.es.md", "README.md"),
    ("docs/es/exposed-app.md", "docs/exposed-app.md"),
    ("docs/es/limits.md", "docs/limits.md"),
];

/// Fails if a page has a link to a missing file or heading, or a command that guard does not accept, or if a
/// translation has other headings or commands than its page. `guard`: the binary.
///
/// # Errors
/// One line for each problem, with the page and its line.
pub fn require_sound(workspace: &Path, guard: &Path) -> Result<()> {
    let tracked = output(
        Command::new("git")
            .current_dir(workspace)
            .args(["ls-files", "-z", "*.md"]),
    )?;
    let names = tracked.split_terminator('\0');
    let mut pages = Vec::new();
    for name in names.filter(|name| !HISTORY.contains(name)) {
        let path = workspace.join(name);
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {name}"))?;
            pages.push((path, text));
        }
    }
    ensure!(!pages.is_empty(), "git tracks no page");
    let mut wrong = Vec::new();
    let mut commands = 0;
    for (path, text) in &pages {
        let page = MarkdownPage::read(text);
        let name = path.strip_prefix(workspace).unwrap_or(path).display();
        for (line, link) in &page.links {
            if let Err(error) = follow(path, link, &page) {
                wrong.push(format!("{name}:{line}: the link {link}: {error:#}"));
            }
        }
        for (line, command) in &page.commands {
            commands += 1;
            if let Err(error) = try_command(guard, command) {
                wrong.push(format!("{name}:{line}: {command}: {error:#}"));
            }
        }
    }
    ensure!(commands > 0, "no page has a command of guard");
    for (translation, original) in TRANSLATIONS {
        let page = |name: &str| {
            let text = pages.iter().find(|(path, _)| *path == workspace.join(name));
            text.map(|(_, text)| MarkdownPage::read(text))
        };
        match (page(translation), page(original)) {
            (Some(translated), Some(page)) => wrong.extend(
                translated
                    .differences_to(&page)
                    .map(|difference| format!("{translation}, beside {original}: {difference}")),
            ),
            _ => wrong.push(format!("{translation} or {original} is missing")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The parts of a page that are checked, with their lines.
#[derive(Default)]
struct MarkdownPage {
    links: Vec<(usize, String)>,
    commands: Vec<(usize, String)>,
    /// The lines of its blocks of shell, without comments.
    shell: Vec<String>,
    /// The level of each heading.
    outline: Vec<HeadingLevel>,
    /// The anchors of its headings, in GitHub's notation.
    anchors: BTreeSet<String>,
}

impl MarkdownPage {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut heading: Option<String> = None;
        let mut is_shell = false;
        let parser = Parser::new_ext(text, Options::ENABLE_TABLES);
        for (event, range) in parser.into_offset_iter() {
            let line = 1 + text[..range.start].matches('\n').count();
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line, dest_url.into_string()));
                }
                Event::Start(Tag::Heading { level, .. }) => {
                    heading = Some(String::new());
                    page.outline.push(level);
                }
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors
                        .extend(heading.take().map(|text| anchor(&text)));
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    is_shell = matches!(&*language, "sh" | "bash" | "console");
                }
                Event::End(TagEnd::CodeBlock) => is_shell = false,
                Event::Text(text) if is_shell => {
                    for (below, text) in text.lines().enumerate() {
                        page.add_command(line + below, text);
                        let without_comment = text.split(" #").next().unwrap_or_default();
                        page.shell.push(without_comment.trim().to_owned());
                    }
                }
                Event::Text(text) | Event::Code(text) if heading.is_some() => {
                    heading.get_or_insert_default().push_str(&text);
                }
                Event::Code(text) => page.add_command(line, &text),
                _ => {}
            }
        }
        page
    }

    /// Adds a line of shell if it runs guard: the part before a comment, a pipe, a redirection or another command.
    fn add_command(&mut self, line: usize, text: &str) {
        let text = text.trim().trim_start_matches("$ ");
        let text = text.strip_prefix("sudo ").unwrap_or(text);
        let ends = [" #", " |", " >", " &&", " ;", ";", " \\"];
        let end = ends.iter().filter_map(|end| text.find(end)).min();
        let command = text[..end.unwrap_or(text.len())].trim();
        // `guard …` stands for any command.
        if command.starts_with("guard ") && command.is_ascii() {
            self.commands.push((line, command.to_owned()));
        }
    }

    /// One line for each difference between a translation and its page: in headings, and in commands to type.
    fn differences_to(&self, original: &Self) -> impl Iterator<Item = String> {
        let (own, others) = (&self.outline, &original.outline);
        let headings = (own != others).then(|| format!("its headings are {own:?}, not {others:?}"));
        let (own, others) = (&self.shell, &original.shell);
        let both = own.iter().zip(others);
        let first = both.take_while(|(one, other)| one == other).count();
        let commands = (own != others).then(|| {
            let named = |lines: &[String]| lines.get(first).map_or("none".to_owned(), Clone::clone);
            format!(
                "line {} of shell: {}, not {}",
                first + 1,
                named(own),
                named(others)
            )
        });
        headings.into_iter().chain(commands)
    }
}

/// GitHub's anchor of a heading: lower case, without punctuation, with `-` for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|letter| match letter {
        ' ' | '-' => Some('-'),
        '_' => Some('_'),
        letter if letter.is_alphanumeric() => Some(letter.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

/// Looks up a link of a page. Links to other hosts are not followed.
fn follow(page: &Path, link: &str, own: &MarkdownPage) -> Result<()> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let folder = page.parent().context("a page lies in a folder")?;
    let target: PathBuf = if file.is_empty() {
        page.to_owned()
    } else {
        folder.join(file)
    };
    ensure!(target.exists(), "there is no such file");
    if heading.is_empty() {
        return Ok(());
    }
    let has_heading = if file.is_empty() {
        own.anchors.contains(heading)
    } else {
        MarkdownPage::read(&fs::read_to_string(&target)?)
            .anchors
            .contains(heading)
    };
    ensure!(has_heading, "there is no such heading");
    Ok(())
}

/// Lets guard parse a command without running it: `--help` at the end prints a help text if everything before it is
/// valid.
fn try_command(guard: &Path, command: &str) -> Result<()> {
    let words = shlex::split(command).context("its quotes do not match")?;
    let arguments = words.iter().skip(1);
    let run = Command::new(guard)
        .args(arguments)
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .with_context(|| guard.display().to_string())?;
    let error = String::from_utf8_lossy(&run.stderr);
    ensure!(
        run.status.success(),
        "{}",
        error.lines().next().unwrap_or_default()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_shell_and_in_code() {
        let page = MarkdownPage::read(
            "See `guard check`, `guard.toml`.\n\n```sh\nsudo guard status --json | jq .   # why\nls\n\
             guard try FILE --for 5m && guard confirm\n```\n\n```toml\nguard = 1\n```\n",
        );
        let commands: Vec<_> = page
            .commands
            .iter()
            .map(|(line, text)| (*line, &**text))
            .collect();
        assert_eq!(
            commands,
            [
                (1, "guard check"),
                (4, "guard status --json"),
                (6, "guard try FILE --for 5m")
            ]
        );
    }

    #[test]
    fn a_translation_has_the_headings_and_commands_of_its_page() {
        let page = MarkdownPage::read("# One\n```sh\nls  # here\n```\n## Two\n`guard top`\n");
        let differences = |text| {
            MarkdownPage::read(text)
                .differences_to(&page)
                .collect::<Vec<_>>()
        };
        assert!(differences("# Uno\n```sh\nls  # esto\n```\n## Dos\n").is_empty());
        let no_heading = differences("# Uno\n```sh\nls\n```\n");
        assert!(no_heading.len() == 1 && no_heading[0].starts_with("its headings"));
        assert_eq!(
            differences("# Uno\n## Dos\n"),
            ["line 1 of shell: none, not ls"]
        );
    }

    #[test]
    fn headings_have_the_anchors_of_github() {
        let page = MarkdownPage::read("# A packet's way\n\n## `guard status`, in full\n");
        let anchors: Vec<_> = page.anchors.iter().map(String::as_str).collect();
        assert_eq!(anchors, ["a-packets-way", "guard-status-in-full"]);
    }

    #[test]
    fn links_to_nowhere_are_told() {
        let folder = std::env::temp_dir().join(format!("guard-pages-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("page.md");
        let text =
            "# One\n[a](#one) [b](page.md#one) [c](#two) [d](none.md) [e](https://example.net/)\n";
        fs::write(&path, text).unwrap();
        let page = MarkdownPage::read(text);
        let sound: Vec<bool> = page
            .links
            .iter()
            .map(|(_, link)| follow(&path, link, &page).is_ok())
            .collect();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(sound, [true, true, false, false, true]);
    }
}
