//! Graphviz DOT: the whole circuit as attributes, drawn from the input upwards, and of what others write the part that a
//! circuit can be in: directed graphs, subgraphs for their nodes and edges, attributes. HTML labels, ports and undirected edges
//! are refused.

use std::collections::HashMap;
use std::fmt::Write;

use super::listing::{Attributes, Listing};
use crate::text::clipped;

/// What a drawn edge is at most as wide as.
const WIDEST: f64 = 4.0;

pub(super) fn text(listing: &Listing) -> String {
    let mut out =
        String::from("digraph circuit {\n  rankdir=BT;\n  node [shape=box, style=rounded];\n");
    let graph = attributes(&listing.graph, &[]);
    writeln!(out, "  graph {graph};").expect("a String takes all");
    for (name, of_node) in &listing.nodes {
        // A line of its own for the class: this `\n` is DOT's.
        let lines = |class: &String| format!("{}\\n{}", escaped(name), escaped(class));
        let label = of_node.get("class").map(|class| ("label", lines(class)));
        let drawn: Vec<(&str, String)> = label.into_iter().collect();
        let all = attributes(of_node, &drawn);
        writeln!(out, "  {} {all};", quoted(name)).expect("a String takes all");
    }
    let size = |of_edge: &Attributes| -> Option<f64> { of_edge.get("score")?.parse().ok() };
    let sizes = listing
        .edges
        .iter()
        .filter_map(|(.., of_edge)| size(of_edge));
    let largest = sizes.fold(0f64, |largest, score| largest.max(score.abs()));
    for (src, dst, of_edge) in &listing.edges {
        let mut drawn = Vec::new();
        if let Some(letter) = of_edge.get("letter") {
            drawn.push(("label", letter.clone()));
        }
        if let Some(score) = size(of_edge).filter(|_| largest > 0.0) {
            let width = 0.5 + (WIDEST - 0.5) * score.abs() / largest;
            drawn.push(("penwidth", format!("{width:.2}")));
            let color = if score < 0.0 { "#2166ac" } else { "#b2182b" };
            drawn.push(("color", color.into()));
        }
        let all = attributes(of_edge, &drawn);
        writeln!(out, "  {} -> {} {all};", quoted(src), quoted(dst)).expect("a String takes all");
    }
    out.push_str("}\n");
    out
}

/// Attributes of the circuit, and what they are drawn with, escaped.
fn attributes(own: &Attributes, drawn: &[(&str, String)]) -> String {
    let own = own.iter();
    let own = own.map(|(name, value)| (name.as_str(), escaped(value)));
    let drawn = drawn.iter().map(|(name, value)| (*name, value.clone()));
    let all: Vec<String> = own
        .chain(drawn)
        .map(|(name, value)| format!("{}=\"{value}\"", quoted(name)))
        .collect();
    format!("[{}]", all.join(", "))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// `{ } [ ] ; , = :`
    Mark(char),
    Arrow,
    Name(String),
}

/// # Errors
/// One line that names the line.
pub(super) fn parse(text: &str) -> Result<Listing, String> {
    let mut reader = Reader {
        rest: text,
        whole: text,
        ahead: None,
        nodes: HashMap::new(),
    };
    reader
        .graph()
        .map_err(|reason| format!("line {}: {reason}", reader.line()))
}

struct Reader<'a> {
    rest: &'a str,
    whole: &'a str,
    ahead: Option<Token>,
    /// Where a node stands in the list: it may be named again.
    nodes: HashMap<String, usize>,
}

impl Reader<'_> {
    fn line(&self) -> usize {
        let read = &self.whole[..self.whole.len() - self.rest.len()];
        read.matches('\n').count() + 1
    }

    fn graph(&mut self) -> Result<Listing, String> {
        let mut name = self.next()?;
        if is_word(&name, "strict") {
            name = self.next()?;
        }
        if !is_word(&name, "digraph") {
            return Err("a circuit is a directed graph: `digraph { ... }`".into());
        }
        let mut open = self.next()?;
        if matches!(open, Some(Token::Name(_))) {
            open = self.next()?;
        }
        if open != Some(Token::Mark('{')) {
            return Err("`{` comes after `digraph`".into());
        }
        let mut listing = Listing::default();
        // Subgraphs only group: what is in them is in the graph.
        let mut depth = 1usize;
        while depth > 0 {
            match self.next()? {
                None => {
                    return Err(format!(
                        "the text ends before the graph does, {depth} `}}` short"
                    ));
                }
                Some(Token::Mark('{')) => depth += 1,
                Some(Token::Mark('}')) => depth -= 1,
                Some(Token::Mark(';' | ',')) => {}
                Some(Token::Name(name)) => self.statement(name, depth, &mut listing)?,
                Some(Token::Mark(mark)) => return Err(format!("`{mark}` begins nothing")),
                Some(Token::Arrow) => return Err("`->` comes after a node".into()),
            }
        }
        Ok(listing)
    }

    fn statement(
        &mut self,
        name: String,
        depth: usize,
        listing: &mut Listing,
    ) -> Result<(), String> {
        match name.to_ascii_lowercase().as_str() {
            "subgraph" => {
                // Its name, if it has one; the `{` is counted where it is read.
                if let Some(Token::Name(_)) = self.peek()? {
                    self.next()?;
                }
                return Ok(());
            }
            "graph" => {
                let attributes = self.attributes()?;
                if depth == 1 {
                    listing.graph.extend(attributes);
                }
                return Ok(());
            }
            "node" | "edge" => return self.attributes().map(drop),
            _ => {}
        }
        match self.peek()? {
            Some(Token::Mark('=')) => {
                self.next()?;
                let Some(Token::Name(value)) = self.next()? else {
                    return Err(format!("`{}=` has no value", clipped(&name, 80)));
                };
                if depth == 1 {
                    listing.graph.insert(name, value);
                }
            }
            Some(Token::Mark(':')) => {
                return Err(format!(
                    "`{}:` has a port, and a node has none",
                    clipped(&name, 80)
                ));
            }
            Some(Token::Arrow) => {
                let mut ends = vec![name];
                while self.peek()? == Some(Token::Arrow) {
                    self.next()?;
                    let Some(Token::Name(end)) = self.next()? else {
                        return Err("`->` leads to a node".into());
                    };
                    ends.push(end);
                }
                let attributes = self.attributes()?;
                for two in ends.windows(2) {
                    let (src, dst) = (two[0].clone(), two[1].clone());
                    listing.edges.push((src, dst, attributes.clone()));
                }
            }
            _ => {
                let attributes = self.attributes()?;
                let next = listing.nodes.len();
                let at = *self.nodes.entry(name.clone()).or_insert(next);
                if at == next {
                    listing.nodes.push((name, attributes));
                } else {
                    listing.nodes[at].1.extend(attributes);
                }
            }
        }
        Ok(())
    }

    /// Any number of `[a=b, c=d]`.
    fn attributes(&mut self) -> Result<Attributes, String> {
        let mut all = Attributes::new();
        while self.peek()? == Some(Token::Mark('[')) {
            self.next()?;
            loop {
                match self.next()? {
                    Some(Token::Mark(']')) => break,
                    Some(Token::Mark(',' | ';')) => {}
                    Some(Token::Name(name)) => {
                        let value = match self.peek()? {
                            Some(Token::Mark('=')) => {
                                self.next()?;
                                self.next()?
                            }
                            // A name alone is true.
                            _ => Some(Token::Name("true".into())),
                        };
                        let Some(Token::Name(value)) = value else {
                            return Err(format!("`{}=` has no value", clipped(&name, 80)));
                        };
                        all.insert(name, value);
                    }
                    _ => return Err("`[` begins attributes that do not end".into()),
                }
            }
        }
        Ok(all)
    }

    fn peek(&mut self) -> Result<Option<Token>, String> {
        if self.ahead.is_none() {
            self.ahead = self.token()?;
        }
        Ok(self.ahead.clone())
    }

    fn next(&mut self) -> Result<Option<Token>, String> {
        match self.ahead.take() {
            Some(token) => Ok(Some(token)),
            None => self.token(),
        }
    }

    fn token(&mut self) -> Result<Option<Token>, String> {
        self.skip()?;
        let Some(first) = self.rest.chars().next() else {
            return Ok(None);
        };
        if self.rest.starts_with("->") {
            self.rest = &self.rest[2..];
            return Ok(Some(Token::Arrow));
        }
        if self.rest.starts_with("--") {
            return Err("`--` is no edge of a directed graph; write `->`".into());
        }
        match first {
            '{' | '}' | '[' | ']' | ';' | ',' | '=' | ':' => {
                self.rest = &self.rest[1..];
                Ok(Some(Token::Mark(first)))
            }
            '"' => self.quoted().map(Some),
            '<' => Err("HTML labels are not read".into()),
            _ => {
                let in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
                let mut end = self.rest.find(|c| !in_name(c)).unwrap_or(self.rest.len());
                // `a->b` is an edge, and not a name with a hyphen.
                if let Some(arrow) = self.rest[..end]
                    .find('-')
                    .filter(|_| !self.rest.starts_with('-'))
                    && self.rest[arrow..].starts_with("->")
                {
                    end = arrow;
                }
                if end == 0 {
                    return Err(format!(
                        "`{}` is in no name without quotes",
                        first.escape_default()
                    ));
                }
                let name = self.rest[..end].to_string();
                self.rest = &self.rest[end..];
                Ok(Some(Token::Name(name)))
            }
        }
    }

    fn quoted(&mut self) -> Result<Token, String> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Token::Name(name));
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => name.push(escaped),
                    Some((_, other)) => name.extend(['\\', other]),
                    None => break,
                },
                _ => name.push(c),
            }
        }
        Err("a quote is not closed".into())
    }

    /// White space and comments.
    fn skip(&mut self) -> Result<(), String> {
        loop {
            let before = self.rest;
            self.rest = self.rest.trim_start();
            let starts_line = {
                let read = &self.whole[..self.whole.len() - self.rest.len()];
                read.is_empty() || read.ends_with('\n')
            };
            if self.rest.starts_with("//") || self.rest.starts_with('#') && starts_line {
                self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
            } else if self.rest.starts_with("/*") {
                let Some((_, rest)) = self.rest.split_once("*/") else {
                    return Err("a comment does not end".into());
                };
                self.rest = rest;
            }
            if self.rest.len() == before.len() {
                return Ok(());
            }
        }
    }
}

fn is_word(token: &Option<Token>, word: &str) -> bool {
    matches!(token, Some(Token::Name(name)) if name.eq_ignore_ascii_case(word))
}
