//! GraphML: the whole circuit as data of a graph, its nodes and its edges, as networkx, Gephi and yEd read it.
//!
//! The reader takes the elements `key`, `graph`, `node`, `edge` and `data` and passes over all others. Document types are
//! refused: they define entities, and a few lines of those can become gigabytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::listing::{Attributes, Listing};
use crate::error::{Error, Result};
use crate::text::clipped;

/// Elements within elements.
const DEEPEST: usize = 64;

/// # Errors
/// [`Error::Invalid`] for a character that XML cannot hold.
pub(super) fn text(listing: &Listing) -> Result<String> {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n",
    );
    let of_nodes = listing.nodes.iter().flat_map(|(_, of)| of.keys());
    let of_edges = listing.edges.iter().flat_map(|(.., of)| of.keys());
    let keys: [(&str, BTreeSet<&String>); 3] = [
        ("graph", listing.graph.keys().collect()),
        ("node", of_nodes.collect()),
        ("edge", of_edges.collect()),
    ];
    let key = |domain: &str, name: &str| escaped(&format!("{domain}.{name}"));
    for (domain, names) in &keys {
        for name in names {
            let kind = if name.as_str() == "score" {
                "double"
            } else {
                "string"
            };
            writeln!(
                out,
                "  <key id=\"{}\" for=\"{domain}\" attr.name=\"{}\" attr.type=\"{kind}\"/>",
                key(domain, name)?,
                escaped(name)?
            )
            .expect("a String takes all");
        }
    }
    let data = |domain: &str, of: &Attributes| -> Result<String> {
        let of = of.iter();
        of.map(|(name, value)| {
            let (key, value) = (key(domain, name)?, escaped(value)?);
            Ok(format!("<data key=\"{key}\">{value}</data>"))
        })
        .collect()
    };
    writeln!(
        out,
        "  <graph id=\"circuit\" edgedefault=\"directed\">{}",
        data("graph", &listing.graph)?
    )
    .expect("a String takes all");
    for (name, of) in &listing.nodes {
        writeln!(
            out,
            "    <node id=\"{}\">{}</node>",
            escaped(name)?,
            data("node", of)?
        )
        .expect("a String takes all");
    }
    for (i, (src, dst, of)) in listing.edges.iter().enumerate() {
        writeln!(
            out,
            "    <edge id=\"e{i}\" source=\"{}\" target=\"{}\">{}</edge>",
            escaped(src)?,
            escaped(dst)?,
            data("edge", of)?
        )
        .expect("a String takes all");
    }
    out.push_str("  </graph>\n</graphml>\n");
    Ok(out)
}

fn escaped(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\r' | '\t' => write!(out, "&#{};", u32::from(c)).expect("a String takes all"),
            c if !is_xml(c) => {
                return Err(Error::invalid(format!(
                    "`{}` has a character that GraphML cannot hold; write the circuit as `.toml`",
                    crate::text::shortened(text)
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// # Errors
/// One line that says where.
pub(super) fn parse(text: &str) -> Result<Listing, String> {
    let mut reader = Reader {
        whole: text,
        rest: text.trim_start_matches('\u{feff}'),
    };
    let mut building = Building::default();
    building
        .all(&mut reader)
        .map_err(|reason| format!("line {}: {reason}", reader.line()))?;
    match (building.open.last(), building.has_graph) {
        (Some(name), _) => Err(format!("no `</{}>` closes what is open", clipped(name, 80))),
        (None, false) => Err("it has no `<graph>`, as GraphML has".into()),
        (None, true) => Ok(building.listing),
    }
}

enum Piece {
    Open {
        name: String,
        attributes: Attributes,
        is_closed: bool,
    },
    Close(String),
    Text(String),
}

/// What is read so far.
#[derive(Default)]
struct Building {
    listing: Listing,
    has_graph: bool,
    /// Names of data by their keys, and what an element has where it has no data of its own.
    keys: BTreeMap<String, Key>,
    /// Names of the elements that are open.
    open: Vec<String>,
    /// The key that a `<data>` belongs to, and its text.
    data: Option<(String, String)>,
    /// The key of an open `<key>`.
    key: Option<String>,
    at: At,
}

#[derive(Default)]
struct Key {
    name: String,
    domain: String,
    default: Option<String>,
}

/// The element that data belongs to.
#[derive(Default, Clone, Copy, PartialEq)]
enum At {
    #[default]
    Nothing,
    Graph,
    Node,
    Edge,
}

impl Building {
    fn all(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        while let Some(piece) = reader.next()? {
            self.take(piece)?;
        }
        Ok(())
    }

    fn take(&mut self, piece: Piece) -> Result<(), String> {
        match piece {
            Piece::Text(text) => {
                if let Some((_, data)) = &mut self.data {
                    data.push_str(&text);
                }
                Ok(())
            }
            Piece::Open {
                name,
                attributes,
                is_closed,
            } => {
                if self.open.len() == DEEPEST {
                    return Err(format!("elements stand more than {DEEPEST} deep"));
                }
                self.opened(&name, attributes)?;
                self.open.push(name.clone());
                if is_closed { self.close(&name) } else { Ok(()) }
            }
            Piece::Close(name) => self.close(&name),
        }
    }

    fn opened(&mut self, name: &str, mut attributes: Attributes) -> Result<(), String> {
        let mut wanted = |of: &str| {
            let value = attributes.remove(of);
            value.ok_or_else(|| format!("`<{}>` has no `{of}`", clipped(name, 80)))
        };
        match name {
            "key" => {
                let id = wanted("id")?;
                let key = Key {
                    name: wanted("attr.name").unwrap_or_else(|_| id.clone()),
                    domain: wanted("for").unwrap_or_default(),
                    default: None,
                };
                self.key = Some(id.clone());
                self.keys.insert(id, key);
            }
            "graph" => {
                if wanted("edgedefault").is_ok_and(|kind| kind != "directed") {
                    return Err(
                        "its edges are undirected, and those of a circuit are directed".into(),
                    );
                }
                self.has_graph = true;
                self.at = At::Graph;
            }
            "node" => {
                let id = wanted("id")?;
                self.listing.nodes.push((id, self.defaults("node")));
                self.at = At::Node;
            }
            "edge" => {
                let (src, dst) = (wanted("source")?, wanted("target")?);
                self.listing.edges.push((src, dst, self.defaults("edge")));
                self.at = At::Edge;
            }
            "data" => self.data = Some((wanted("key")?, String::new())),
            "default" => self.data = Some((String::new(), String::new())),
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, name: &str) -> Result<(), String> {
        if self.open.pop().is_none_or(|open| open != name) {
            return Err(format!(
                "`</{}>` closes what is not open",
                clipped(name, 80)
            ));
        }
        match name {
            "data" => {
                if let Some((key, text)) = self.data.take()
                    && let Some(key) = self.keys.get(&key)
                {
                    let of = match self.at {
                        At::Nothing => return Ok(()),
                        At::Graph => Some(&mut self.listing.graph),
                        At::Node => self.listing.nodes.last_mut().map(|(_, of)| of),
                        At::Edge => self.listing.edges.last_mut().map(|(.., of)| of),
                    };
                    of.map(|of| of.insert(key.name.clone(), text));
                }
            }
            "default" => {
                let text = self.data.take().map(|(_, text)| text);
                if let Some(key) = self.key.as_ref().and_then(|key| self.keys.get_mut(key)) {
                    key.default = text;
                }
            }
            "key" => self.key = None,
            "node" | "edge" => self.at = At::Graph,
            _ => {}
        }
        Ok(())
    }

    fn defaults(&self, domain: &str) -> Attributes {
        let keys = self.keys.values().filter(|key| key.domain == domain);
        keys.filter_map(|key| Some((key.name.clone(), key.default.clone()?)))
            .collect()
    }
}

/// XML piece by piece, as far as GraphML needs it.
struct Reader<'a> {
    whole: &'a str,
    rest: &'a str,
}

impl Reader<'_> {
    fn line(&self) -> usize {
        let read = &self.whole[..self.whole.len() - self.rest.len()];
        read.matches('\n').count() + 1
    }

    fn next(&mut self) -> Result<Option<Piece>, String> {
        loop {
            if self.rest.is_empty() {
                return Ok(None);
            }
            let passed = [("<?", "?>"), ("<!--", "-->")];
            if let Some((_, end)) = passed
                .iter()
                .find(|(begin, _)| self.rest.starts_with(begin))
            {
                self.past(end)?;
                continue;
            }
            if self.rest.starts_with("<![CDATA[") {
                let inside = &self.rest["<![CDATA[".len()..];
                let end = inside
                    .find("]]>")
                    .ok_or("the text ends within a CDATA section")?;
                let text = inside[..end].to_string();
                self.rest = &inside[end + 3..];
                return Ok(Some(Piece::Text(text)));
            }
            if self.rest.starts_with("<!") {
                return Err("a DOCTYPE is not read; leave it out".into());
            }
            if self.rest.starts_with('<') {
                return self.tag().map(Some);
            }
            let end = self.rest.find('<').unwrap_or(self.rest.len());
            let text = unescaped(&self.rest[..end])?;
            self.rest = &self.rest[end..];
            return Ok(Some(Piece::Text(text)));
        }
    }

    fn past(&mut self, end: &str) -> Result<(), String> {
        let at = self
            .rest
            .find(end)
            .ok_or("the text ends within a comment")?;
        self.rest = &self.rest[at + end.len()..];
        Ok(())
    }

    fn tag(&mut self) -> Result<Piece, String> {
        let inside = &self.rest[1..];
        // A `>` may stand in an attribute.
        let mut quote = None;
        let end = inside.char_indices().find_map(|(at, c)| match quote {
            Some(open) => {
                if c == open {
                    quote = None;
                }
                None
            }
            None => match c {
                '"' | '\'' => {
                    quote = Some(c);
                    None
                }
                '>' => Some(at),
                _ => None,
            },
        });
        let end = end.ok_or("the text ends within a tag")?;
        let tag = inside[..end].trim();
        self.rest = &inside[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            return Ok(Piece::Close(local(name.trim()).to_string()));
        }
        let (tag, is_closed) = match tag.strip_suffix('/') {
            Some(tag) => (tag.trim_end(), true),
            None => (tag, false),
        };
        let name_end = tag.find(char::is_whitespace).unwrap_or(tag.len());
        let mut attributes = Attributes::new();
        let mut rest = tag[name_end..].trim_start();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or("an attribute has no value")?;
            let after = after.trim_start();
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''));
            let quote = quote.ok_or("the value of an attribute stands in quotes")?;
            let (value, after) = after[1..]
                .split_once(quote)
                .ok_or("the value of an attribute is not closed")?;
            attributes.insert(name.trim().to_string(), unescaped(value)?);
            rest = after.trim_start();
        }
        Ok(Piece::Open {
            name: local(&tag[..name_end]).to_string(),
            attributes,
            is_closed,
        })
    }
}

/// A name without the prefix of its namespace.
fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let entity = &rest[at + 1..];
        let end = entity
            .find(';')
            .ok_or("`&` begins an entity that has no `;`")?;
        let name = &entity[..end];
        let number = name.strip_prefix('#').map(|number| {
            let parsed = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            parsed.ok().and_then(char::from_u32)
        });
        let c = match (name, number) {
            (_, Some(Some(c))) => c,
            (_, Some(None)) => {
                return Err(format!("`&{};` is no character", clipped(name, 40)));
            }
            ("amp", None) => '&',
            ("lt", None) => '<',
            ("gt", None) => '>',
            ("quot", None) => '"',
            ("apos", None) => '\'',
            _ => {
                return Err(format!(
                    "`&{};` is an entity that is not known",
                    clipped(name, 40)
                ));
            }
        };
        out.push(c);
        rest = &entity[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}
