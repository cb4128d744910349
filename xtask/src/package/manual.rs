//! Makes the manual page guard.toml(5) from `docs/policy.md`, so that both are in step.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use roff::{Inline, Roff, bold, italic, roman};

/// The page of the policy file. The tables of `markdown` must have three columns: key, default and meaning.
pub fn policy_page(markdown: &str, version: &str) -> String {
    let mut page = Page {
        roff: Roff::new(),
        inlines: Vec::new(),
        cells: Vec::new(),
        in_code: false,
        is_emphasized: false,
    };
    let source = format!("guard {version}");
    page.roff
        .control("TH", ["guard.toml", "5", "", source.as_str(), "guard"])
        .control("SH", ["NAME"])
        .text([roman("guard.toml - the policy of guard(1)")])
        .control("SH", ["DESCRIPTION"]);
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        page.add(event);
    }
    page.roff.control("SH", ["SEE ALSO"]).text([
        bold("guard"),
        roman("(1), "),
        bold("guard-check"),
        roman("(1)"),
    ]);
    page.roff.render()
}

struct Page {
    roff: Roff,
    /// The text of the open paragraph, heading or cell.
    inlines: Vec<Inline>,
    /// The cells of the open row.
    cells: Vec<Vec<Inline>>,
    in_code: bool,
    is_emphasized: bool,
}

impl Page {
    fn add(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_code => {
                for line in text.lines() {
                    self.roff.text([roman(line)]);
                }
            }
            Event::Text(text) => self.inlines.push(if self.is_emphasized {
                italic(&*text)
            } else {
                roman(&*text)
            }),
            Event::Code(code) => self.inlines.push(bold(&*code)),
            Event::SoftBreak | Event::HardBreak => self.inlines.push(roman(" ")),
            _ => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Paragraph => {
                self.roff.control("PP", []);
            }
            Tag::Item => {
                self.roff.control("IP", ["\\(bu", "2"]);
            }
            Tag::CodeBlock(_) => {
                self.in_code = true;
                self.roff
                    .control("PP", [])
                    .control("RS", ["4"])
                    .control("nf", []);
            }
            Tag::Emphasis | Tag::Strong => self.is_emphasized = true,
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            // The page has a title of its own.
            TagEnd::Heading(HeadingLevel::H1) => self.inlines.clear(),
            TagEnd::Heading(_) => {
                let words = std::mem::take(&mut self.inlines);
                let title: String = words.iter().map(text_of).collect();
                self.roff.control("SH", [title.to_uppercase().as_str()]);
            }
            TagEnd::Paragraph | TagEnd::Item => {
                let inlines = std::mem::take(&mut self.inlines);
                if !inlines.is_empty() {
                    self.roff.text(inlines);
                }
            }
            TagEnd::CodeBlock => {
                self.in_code = false;
                self.roff.control("fi", []).control("RE", []);
            }
            TagEnd::Emphasis | TagEnd::Strong => self.is_emphasized = false,
            TagEnd::TableCell => self.cells.push(std::mem::take(&mut self.inlines)),
            // A list needs no header.
            TagEnd::TableHead => self.cells.clear(),
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    fn row(&mut self) {
        let mut cells = std::mem::take(&mut self.cells).into_iter();
        let (Some(mut key), Some(default), Some(says)) = (cells.next(), cells.next(), cells.next())
        else {
            return;
        };
        if !default.is_empty() {
            key.push(roman(" (default: "));
            key.extend(default);
            key.push(roman(")"));
        }
        self.roff.control("TP", []).text(key).text(says);
    }
}

fn text_of(inline: &Inline) -> &str {
    match inline {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text,
        Inline::LineBreak => " ",
    }
}

#[cfg(test)]
mod tests {
    use super::policy_page;

    #[test]
    fn everything_in_the_markdown_is_on_the_page() {
        let page = policy_page(
            "# Title\n\nSome *text* with `code`\nand more.\n\n```toml\nmode = \"off\"\n.dot\n```\n\n\
             ## Rates and bursts\n\n- first\n- second\n\n\
             | key | default | what |\n| --- | --- | --- |\n\
             | `mode` | `off` | Which. |\n| `name` | | Whose. |\n",
            "1.2.3",
        );
        let (_preamble, page) = page.split_once(".TH").unwrap();
        assert_eq!(
            page,
            " guard.toml 5  \"guard 1.2.3\" guard\n\
             .SH NAME\nguard.toml \\- the policy of guard(1)\n\
             .SH DESCRIPTION\n\
             .PP\nSome \\fItext\\fR with \\fBcode\\fR and more.\n\
             .PP\n.RS 4\n.nf\nmode = \"off\"\n\\&.dot\n.fi\n.RE\n\
             .SH \"RATES AND BURSTS\"\n\
             .IP \\(bu 2\nfirst\n.IP \\(bu 2\nsecond\n\
             .TP\n\\fBmode\\fR (default: \\fBoff\\fR)\nWhich.\n\
             .TP\n\\fBname\\fR\nWhose.\n\
             .SH \"SEE ALSO\"\n\\fBguard\\fR(1), \\fBguard\\-check\\fR(1)\n"
        );
    }
}
