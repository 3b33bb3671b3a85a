//! What an expression is made of, and the value of it.

use std::collections::BTreeMap;
use std::fmt;

/// A text that is put together may have so many bytes.
const MOST_TEXT: usize = 2000;

/// What a column or a variable holds.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub enum Value {
    Text(String),
    Number(f64),
    Truth(bool),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Number(_) => "a number",
            Value::Truth(_) => "true or false",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::Number(number) => write!(f, "{number}"),
            Value::Truth(truth) => write!(f, "{truth}"),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Number(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Truth(truth)
    }
}

/// Tables that a value can be looked up in, by their names.
pub type Tables = BTreeMap<String, BTreeMap<String, Value>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Literal(Value),
    Name(String),
    Lookup(String, Box<Node>),
    Number(Box<Node>),
    Text(Box<Node>),
    Not(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
    Compare(Compare, Box<[Node; 2]>),
    /// The first, and what is added to it or taken from it.
    Sum(Box<Node>, Vec<(bool, Node)>),
    If(Box<[Node; 3]>),
}

impl Node {
    pub fn collect<'a>(&'a self, names: &mut Vec<&'a str>, tables: &mut Vec<&'a str>) {
        let parts: Vec<&Node> = match self {
            Node::Literal(_) => Vec::new(),
            Node::Name(name) => {
                names.push(name);
                Vec::new()
            }
            Node::Lookup(table, key) => {
                tables.push(table);
                vec![key]
            }
            Node::Number(of) | Node::Text(of) | Node::Not(of) => vec![of],
            Node::All(of) | Node::Any(of) => of.iter().collect(),
            Node::Compare(_, sides) => sides.iter().collect(),
            Node::Sum(first, rest) => std::iter::once(&**first)
                .chain(rest.iter().map(|(_, node)| node))
                .collect(),
            Node::If(parts) => parts.iter().collect(),
        };
        parts
            .into_iter()
            .for_each(|part| part.collect(names, tables));
    }

    fn truth(
        &self,
        known: &dyn Fn(&str) -> Result<Value, String>,
        tables: &Tables,
    ) -> Result<bool, String> {
        match self.value(known, tables)? {
            Value::Truth(truth) => Ok(truth),
            other => Err(format!(
                "{} `{other}` stands where true or false is asked for; compare it with something",
                other.kind()
            )),
        }
    }

    pub fn value(
        &self,
        known: &dyn Fn(&str) -> Result<Value, String>,
        tables: &Tables,
    ) -> Result<Value, String> {
        Ok(match self {
            Node::Literal(value) => value.clone(),
            Node::Name(name) => known(name)?,
            Node::Lookup(table, key) => {
                let key = key.value(known, tables)?.to_string();
                let entries = tables
                    .get(table)
                    .ok_or_else(|| format!("there is no table `{table}`"))?;
                (entries.get(&key).cloned())
                    .ok_or_else(|| format!("table `{table}` has no `{key}`; add it"))?
            }
            Node::Number(of) => match of.value(known, tables)? {
                Value::Number(number) => Value::Number(number),
                other => {
                    let number = other.to_string().trim().parse().ok();
                    let number = number.filter(|number: &f64| number.is_finite());
                    Value::Number(number.ok_or_else(|| format!("`{other}` is no number"))?)
                }
            },
            Node::Text(of) => Value::Text(of.value(known, tables)?.to_string()),
            Node::Not(of) => Value::Truth(!of.truth(known, tables)?),
            Node::All(of) => {
                let mut all = true;
                for part in of {
                    all &= part.truth(known, tables)?;
                }
                Value::Truth(all)
            }
            Node::Any(of) => {
                let mut any = false;
                for part in of {
                    any |= part.truth(known, tables)?;
                }
                Value::Truth(any)
            }
            Node::Compare(how, sides) => {
                let left = sides[0].value(known, tables)?;
                let right = sides[1].value(known, tables)?;
                if left.kind() != right.kind() {
                    return Err(format!(
                        "{} `{left}` is compared with {} `{right}`; make both one kind with `number(x)` or `text(x)`",
                        left.kind(),
                        right.kind()
                    ));
                }
                Value::Truth(match how {
                    Compare::Equal => left == right,
                    Compare::Unequal => left != right,
                    Compare::Less => left < right,
                    Compare::AtMost => left <= right,
                    Compare::Greater => left > right,
                    Compare::AtLeast => left >= right,
                })
            }
            Node::Sum(first, rest) => {
                let mut sum = first.value(known, tables)?;
                for (adds, part) in rest {
                    let part = part.value(known, tables)?;
                    sum = match (sum, part, adds) {
                        (Value::Number(a), Value::Number(b), adds) => {
                            let sum = if *adds { a + b } else { a - b };
                            if !sum.is_finite() {
                                return Err("a sum is larger than any number".into());
                            }
                            Value::Number(sum)
                        }
                        (Value::Text(a), Value::Text(b), true)
                            if a.len() + b.len() <= MOST_TEXT =>
                        {
                            Value::Text(a + &b)
                        }
                        (Value::Text(_), Value::Text(_), true) => {
                            return Err(format!("a text becomes longer than {MOST_TEXT} bytes"));
                        }
                        (a, b, _) => {
                            return Err(format!(
                                "{} `{a}` and {} `{b}` have no sum or difference",
                                a.kind(),
                                b.kind()
                            ));
                        }
                    };
                }
                sum
            }
            Node::If(parts) => match parts[0].truth(known, tables)? {
                true => parts[1].value(known, tables)?,
                false => parts[2].value(known, tables)?,
            },
        })
    }
}
