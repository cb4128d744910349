//! Parses YAML 1.2 into a tree whose nodes have their places. Of Compose, it knows only the tags.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle, Tag as RawTag};
use indexmap::{IndexMap, map::Entry};

use super::{
    interpolate::Reference,
    source::{ComposeError, Place, SourceFile},
};

/// The deepest nesting of collections, including those behind aliases.
const MAX_DEPTH: usize = 64;

/// The most nodes of all files together, with aliases, merges and `extends` written out.
const MAX_NODES: usize = 100_000;

/// This many bytes of text count as one more node.
const BYTES_PER_NODE: usize = 256;

#[derive(Clone)]
pub struct Node {
    /// Where the value is written: for an alias, the place of the anchor's value.
    pub place: Place,
    pub value: Value,
    pub tag: Option<Tag>,
    /// Written between brackets or braces.
    pub in_flow: bool,
}

#[derive(Clone)]
pub enum Value {
    Null,
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Mapping),
}

pub type Mapping = IndexMap<String, MappingEntry>;

#[derive(Clone)]
pub struct MappingEntry {
    pub key: Place,
    pub node: Node,
}

#[derive(Clone)]
pub struct Scalar {
    pub text: String,
    pub style: ScalarStyle,
    /// The facts of a text that names variables.
    pub reference: Option<Box<Reference>>,
    /// `!!str` or another YAML type tag, which overrides the style.
    pub tagged: Option<CoreType>,
}

/// The type that a tag gives to a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreType {
    Text,
    Other,
}

/// The type of a scalar for Compose's YAML parser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScalarType {
    Text,
    Integer(i64),
    Float(f64),
    /// A boolean or a date.
    Other,
}

impl Scalar {
    /// A scalar without quotes may be a number: `0o17`, `017`, `0xf`, `0b1111` and `1_5` are 15. `08` is a float, since
    /// it is no octal number.
    pub fn resolve(&self) -> ScalarType {
        let is_plain = match self.tagged {
            Some(CoreType::Text) => false,
            Some(CoreType::Other) => true,
            None => self.style == ScalarStyle::Plain,
        };
        // `_5` is text, `5_` a number.
        if !is_plain || self.reference.is_some() || self.text.starts_with('_') {
            return ScalarType::Text;
        }
        let text = self.text.replace('_', "");
        if let Some(number) = integer(&text.to_ascii_lowercase()) {
            return ScalarType::Integer(number);
        }
        let is_float = text.contains(|c: char| c.is_ascii_digit())
            && text
                .chars()
                .all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
        match text.parse::<f64>() {
            Ok(number) if is_float && number.is_finite() => ScalarType::Float(number),
            _ if is_truth(&self.text) || is_date(&self.text) => ScalarType::Other,
            _ => ScalarType::Text,
        }
    }

    /// Its text, or its number in decimal, as Docker receives it.
    pub fn decimal(&self) -> Cow<'_, str> {
        match self.resolve() {
            ScalarType::Integer(number) => Cow::Owned(number.to_string()),
            _ => Cow::Borrowed(&self.text),
        }
    }
}

/// Compose's tags for merging a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Reset,
    Override,
}

/// The number of nodes that may still be built, so that no file uses all memory.
pub struct NodeBudget(usize);

impl Default for NodeBudget {
    fn default() -> Self {
        Self(MAX_NODES)
    }
}

impl NodeBudget {
    pub fn spend(&mut self, size: usize, place: &Place) -> Result<(), ComposeError> {
        let Self(left) = self;
        *left = left.checked_sub(size).ok_or_else(|| {
            place.error(format!(
                "is too large: with aliases and extends written out, more than {MAX_NODES} values"
            ))
        })?;
        Ok(())
    }
}

impl Node {
    pub fn null(place: Place) -> Self {
        Self {
            place,
            value: Value::Null,
            tag: None,
            in_flow: false,
        }
    }

    /// Inside a node with the tag `!override`, Compose ignores tags.
    fn clear_tags(&mut self) {
        let clear = |node: &mut Self| {
            node.tag = None;
            node.clear_tags();
        };
        match &mut self.value {
            Value::Null | Value::Scalar(_) => {}
            Value::Sequence(items) => items.iter_mut().for_each(clear),
            Value::Mapping(mapping) => {
                mapping
                    .values_mut()
                    .for_each(|entry| clear(&mut entry.node));
            }
        }
    }

    pub fn is_reset(&self) -> bool {
        self.tag == Some(Tag::Reset)
    }

    pub fn mapping(&self) -> Option<&Mapping> {
        match &self.value {
            Value::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }

    pub fn sequence(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Sequence(items) => Some(items),
            _ => None,
        }
    }

    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// The entry at a key of a mapping. A null value, or one with the tag `!reset`, counts as absent.
    pub fn entry(&self, key: &str) -> Option<&MappingEntry> {
        let entry = self.mapping()?.get(key)?;
        let is_there = !entry.node.is_reset() && !matches!(entry.node.value, Value::Null);
        is_there.then_some(entry)
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        Some(&self.entry(key)?.node)
    }

    /// The number of nodes that it charges to the [`NodeBudget`].
    pub fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null => 0,
            Value::Scalar(Scalar { text, .. }) => text.len() / BYTES_PER_NODE,
            Value::Sequence(items) => items.iter().map(Self::size).sum(),
            Value::Mapping(mapping) => mapping.values().map(|entry| entry.node.size()).sum(),
        }
    }

    fn depth(&self) -> usize {
        match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::Sequence(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Mapping(mapping) => {
                let depths = mapping.values().map(|entry| entry.node.depth());
                1 + depths.max().unwrap_or(0)
            }
        }
    }
}

/// Parses the documents of a text, and leaves out empty ones.
pub fn parse(source: &Arc<SourceFile>, budget: &mut NodeBudget) -> Result<Vec<Node>, ComposeError> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder {
        source,
        parser: Parser::new_from_str_with_options(&source.text, options),
        anchors: HashMap::new(),
        flows: 0,
        budget,
    };
    let mut documents = Vec::new();
    while let Some((event, _)) = builder.next()? {
        if let Event::DocumentStart(..) = event {
            builder.anchors.clear();
            let document = builder.root()?;
            documents.extend(document.filter(|node| !matches!(node.value, Value::Null)));
        }
    }
    Ok(documents)
}

struct Builder<'a> {
    source: &'a Arc<SourceFile>,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    /// The node of each anchor, with its depth.
    anchors: HashMap<usize, (Node, usize)>,
    /// The number of open flow collections.
    flows: usize,
    budget: &'a mut NodeBudget,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, ComposeError> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok(next)) => Ok(Some(next)),
            Some(Err(error)) => {
                let offset = error.marker().byte_offset().unwrap_or(0);
                let place = self.source.place(offset, offset);
                Err(place.error(format!("is no YAML: {}{}", error.info(), hint(&place))))
            }
        }
    }

    fn root(&mut self) -> Result<Option<Node>, ComposeError> {
        match self.next()? {
            None | Some((Event::DocumentEnd, _)) => Ok(None),
            Some((event, span)) => self.node(event, span, 0).map(Some),
        }
    }

    fn place(&self, span: &Span) -> Place {
        let start = span.start.byte_offset().unwrap_or(0);
        self.source
            .place(start, span.end.byte_offset().unwrap_or(start))
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, ComposeError> {
        let mut place = self.place(&span);
        self.budget.spend(1, &place)?;
        if depth > MAX_DEPTH {
            return Err(place.error(TOO_DEEP));
        }
        let in_flow = self.flows > 0;
        let (value, anchor, tag) = match event {
            Event::Alias(anchor) => return self.alias(anchor, &place, depth),
            Event::Scalar(text, style, anchor, tag) => {
                self.budget.spend(text.len() / BYTES_PER_NODE, &place)?;
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                    place.start = block_header(&place).unwrap_or(place.start);
                }
                (
                    scalar(text.into_owned(), style, tag.as_deref()),
                    anchor,
                    tag,
                )
            }
            Event::SequenceStart(style, anchor, tag) => {
                (self.sequence(style, &mut place, depth)?, anchor, tag)
            }
            Event::MappingStart(style, anchor, tag) => {
                (self.mapping(style, &mut place, depth)?, anchor, tag)
            }
            _ => (Value::Null, 0, None),
        };
        let mut node = Node {
            place,
            value,
            tag: tag.as_deref().and_then(directive),
            in_flow,
        };
        if node.tag == Some(Tag::Override) {
            node.clear_tags();
        }
        if anchor != 0 {
            self.budget.spend(node.size(), &node.place)?;
            let depth = node.depth();
            self.anchors.insert(anchor, (node.clone(), depth));
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, place: &Place, depth: usize) -> Result<Node, ComposeError> {
        let Some((node, nested)) = self.anchors.get(&anchor) else {
            let alias = &self.source.text[place.start..place.end];
            return Err(place.error(format!("{alias} refers to a value that it is part of")));
        };
        if depth + nested > MAX_DEPTH {
            return Err(place.error(TOO_DEEP));
        }
        self.budget.spend(node.size(), place)?;
        Ok(node.clone())
    }

    fn sequence(
        &mut self,
        style: StructureStyle,
        place: &mut Place,
        depth: usize,
    ) -> Result<Value, ComposeError> {
        let flow = usize::from(style == StructureStyle::Flow);
        self.flows += flow;
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::SequenceEnd) {
                self.close(style, place, &span);
                break;
            }
            items.push(self.node(event, span, depth + 1)?);
        }
        self.flows -= flow;
        Ok(Value::Sequence(items))
    }

    /// Extends a flow collection's place to its closing bracket or brace.
    fn close(&self, style: StructureStyle, place: &mut Place, span: &Span) {
        if style == StructureStyle::Flow {
            place.end = self.place(span).end;
        }
    }

    fn mapping(
        &mut self,
        style: StructureStyle,
        place: &mut Place,
        depth: usize,
    ) -> Result<Value, ComposeError> {
        let flow = usize::from(style == StructureStyle::Flow);
        self.flows += flow;
        let mut mapping = Mapping::new();
        let mut merged = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::MappingEnd) {
                self.close(style, place, &span);
                break;
            }
            let key = self.node(event, span, depth + 1)?;
            let Some((event, span)) = self.next()? else {
                break;
            };
            let node = self.node(event, span, depth + 1)?;
            if is_merge(&key) {
                merged.push(node);
            } else {
                insert(&mut mapping, key, node)?;
            }
        }
        self.flows -= flow;
        for node in merged {
            merge_key(&mut mapping, node)?;
        }
        Ok(Value::Mapping(mapping))
    }
}

/// The offset of the `|` or `>` of the block scalar whose text begins at a place.
fn block_header(content: &Place) -> Option<usize> {
    let text = &content.source.text;
    let before = text[..content.source.line_start(content.start)].trim_end();
    let start = content.source.line_start(before.len());
    let signs = before[start..].match_indices(['|', '>']);
    let mut starts = signs.map(|(index, _)| start + index);
    starts.find(|start| {
        let is_indicator = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-');
        let rest = before[start + 1..].trim_start_matches(is_indicator);
        let comment = rest.trim_start();
        comment.is_empty() || (comment.starts_with('#') && comment.len() < rest.len())
    })
}

const TOO_DEEP: &str = "is nested too deep: more than 64 levels";

/// A hint about the usual mistake at the place where the parser stops.
fn hint(place: &Place) -> &'static str {
    let line = &place.source.text[place.source.line_start(place.start)..];
    let indent = line.trim_start_matches([' ', '\t']);
    if line[..line.len() - indent.len()].contains('\t') {
        ": indent with spaces, not with tabs"
    } else {
        ""
    }
}

fn scalar(text: String, style: ScalarStyle, tag: Option<&RawTag>) -> Value {
    let is_null = matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
    let is_text = tag.and_then(RawTag::core_suffix) == Some("str");
    let tagged = tag.map(|tag| match tag.core_suffix() {
        // A scalar with one of Compose's own tags is a text.
        None | Some("str") => CoreType::Text,
        Some(_) => CoreType::Other,
    });
    if style == ScalarStyle::Plain && is_null && !is_text {
        return Value::Null;
    }
    Value::Scalar(Scalar {
        text,
        style,
        reference: None,
        tagged,
    })
}

fn directive(tag: &RawTag) -> Option<Tag> {
    match (tag.handle(), tag.suffix()) {
        ("!", "reset") => Some(Tag::Reset),
        ("!", "override") => Some(Tag::Override),
        _ => None,
    }
}

fn insert(mapping: &mut Mapping, key: Node, node: Node) -> Result<(), ComposeError> {
    let text = match key.value {
        Value::Scalar(Scalar { text, .. }) => text,
        Value::Null => String::new(),
        Value::Sequence(_) | Value::Mapping(_) => {
            return Err(key
                .place
                .error("a key must be text, not a list or a mapping"));
        }
    };
    match mapping.entry(text) {
        Entry::Occupied(first) => {
            let (name, line) = (first.key(), first.get().key.line());
            let problem = format!("\"{name}\" is already in line {line}: use each key once");
            Err(key.place.error(problem))
        }
        Entry::Vacant(vacant) => {
            vacant.insert(MappingEntry {
                key: key.place,
                node,
            });
            Ok(())
        }
    }
}

fn is_merge(key: &Node) -> bool {
    let scalar = key.scalar();
    scalar.is_some_and(|scalar| scalar.text == "<<" && scalar.style == ScalarStyle::Plain)
}

/// `<<`: adds the keys that the mapping does not have. Of several mappings, the earlier one decides.
fn merge_key(mapping: &mut Mapping, node: Node) -> Result<(), ComposeError> {
    match node.value {
        Value::Null => Ok(()),
        Value::Mapping(other) => {
            for (name, entry) in other {
                mapping.entry(name).or_insert(entry);
            }
            Ok(())
        }
        Value::Sequence(others) => {
            let mut mappings = others.into_iter();
            mappings.try_for_each(|other| merge_key(mapping, other))
        }
        Value::Scalar(_) => {
            let problem = "<< takes a mapping or a list of mappings, such as *defaults";
            Err(node.place.error(problem))
        }
    }
}

/// Parses an integer from lower-case text without underscores.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { -1 } else { 1 }, digits),
        None => (1, text),
    };
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)];
    let based = prefixes.iter().find_map(|(prefix, base)| {
        let digits = digits.strip_prefix(prefix)?;
        (!digits.is_empty()).then_some((digits, *base))
    });
    let (digits, base) = based.unwrap_or((digits, 10));
    if !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    Some(sign * i64::from_str_radix(digits, base).ok()?)
}

/// Whether the text is a spelling of true or false in YAML 1.2.
fn is_truth(text: &str) -> bool {
    let words = ["true", "True", "TRUE", "false", "False", "FALSE"];
    words.contains(&text)
}

/// Whether the text is a date such as `2024-01-31`, with or without a time.
fn is_date(text: &str) -> bool {
    let date = text.split(['T', 't', ' ']).next().unwrap_or_default();
    let parts: Vec<&str> = date.split('-').collect();
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    matches!(lengths.as_slice(), [4, 1..=2, 1..=2]) && parts.iter().all(is_number)
}

/// Whether Compose reads the text as true.
pub fn is_true(text: &str) -> bool {
    ["true", "yes", "y", "on", "1"].contains(&text.to_ascii_lowercase().as_str())
}
