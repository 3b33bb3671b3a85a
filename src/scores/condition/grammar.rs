//! Conditions as they are typed: comparisons, joined by `and`, `or`, `not` and brackets.
//!
//! `and` binds closer than `or`, and a comma between two comparisons is an `and`. After a sign a value goes on to the next space,
//! comma or closing bracket, so that names such as `a9.h6<q>` need no quotes; in quotes it may hold anything.

use std::ops::Range;

use crate::error::{Error, Result};

/// Brackets and `not`s inside each other at most.
const DEEPEST: usize = 50;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expression {
    Compare(Comparison),
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    pub column: String,
    /// Where the column stands in the text, in bytes.
    pub at: Range<usize>,
    pub sign: Sign,
    /// Several where one of them is enough (or, with [`Sign::Not`], none may be it).
    pub values: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub text: String,
    pub at: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Is,
    Not,
    Less,
    AtMost,
    More,
    AtLeast,
}

const SIGNS: [(&str, Sign); 8] = [
    ("!=", Sign::Not),
    ("<>", Sign::Not),
    ("<=", Sign::AtMost),
    (">=", Sign::AtLeast),
    ("==", Sign::Is),
    ("=", Sign::Is),
    ("<", Sign::Less),
    (">", Sign::More),
];

impl Expression {
    pub fn parse(text: &str) -> Result<Expression> {
        let mut reader = Reader {
            text,
            at: 0,
            depth: 0,
        };
        let whole = reader.any()?;
        match reader.peek() {
            None => Ok(whole),
            Some(_) => Err(reader.refuse("`and`, `or` or a comma goes between two conditions")),
        }
    }

    /// Each comparison in it, in order.
    pub fn comparisons(&self) -> Vec<&Comparison> {
        match self {
            Expression::Compare(one) => vec![one],
            Expression::All(all) | Expression::Any(all) => {
                all.iter().flat_map(Expression::comparisons).collect()
            }
            Expression::Not(inner) => inner.comparisons(),
        }
    }
}

/// The text again, with a mark below the place.
pub(super) fn pointing(text: &str, at: &Range<usize>, reason: &str) -> Error {
    let before = text.get(..at.start).unwrap_or(text).chars().count();
    let marked = text.get(at.clone()).unwrap_or("").chars().count().max(1);
    Error::Condition {
        reason: reason.into(),
        text: text.into(),
        mark: format!("{}{}", " ".repeat(before), "^".repeat(marked)),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn any(&mut self) -> Result<Expression> {
        let mut all = vec![self.all()?];
        while self.word("or") {
            all.push(self.all()?);
        }
        Ok(if all.len() == 1 {
            all.swap_remove(0)
        } else {
            Expression::Any(all)
        })
    }

    fn all(&mut self) -> Result<Expression> {
        let mut all = vec![self.one()?];
        while self.word("and") || self.sign(",") {
            all.push(self.one()?);
        }
        Ok(if all.len() == 1 {
            all.swap_remove(0)
        } else {
            Expression::All(all)
        })
    }

    fn one(&mut self) -> Result<Expression> {
        if self.depth == DEEPEST {
            return Err(self.refuse("brackets inside each other go 50 deep at most"));
        }
        self.depth += 1;
        let one = if self.word("not") {
            Expression::Not(Box::new(self.one()?))
        } else if self.sign("(") {
            let inner = self.any()?;
            if !self.sign(")") {
                return Err(self.refuse("a bracket is not closed"));
            }
            inner
        } else {
            Expression::Compare(self.comparison()?)
        };
        self.depth -= 1;
        Ok(one)
    }

    fn comparison(&mut self) -> Result<Comparison> {
        let Some(at) = self.name() else {
            return Err(
                self.refuse("a column is expected here, as in `layer > 10` or `component = z`")
            );
        };
        self.at = at.end;
        let column = self.text[at.clone()].to_string();
        let negated = self.word("not");
        if self.word("in") {
            return Ok(Comparison {
                column,
                at,
                sign: if negated { Sign::Not } else { Sign::Is },
                values: self.list()?,
            });
        }
        let found = SIGNS.iter().find(|(sign, _)| !negated && self.sign(sign));
        let Some(&(_, sign)) = found else {
            return Err(self.refuse("one of = != < <= > >= or `in` follows a column"));
        };
        let mut values = vec![self.value()?];
        // A comma goes on with values where no other comparison begins behind it.
        while matches!(sign, Sign::Is | Sign::Not) && self.goes_on() {
            self.sign(",");
            values.push(self.value()?);
        }
        Ok(Comparison {
            column,
            at,
            sign,
            values,
        })
    }

    /// `(a, b)`, `[a, b]`, or `a, b`.
    fn list(&mut self) -> Result<Vec<Value>> {
        let close = [("(", ")"), ("[", "]")]
            .into_iter()
            .find_map(|(open, close)| self.sign(open).then_some(close));
        let mut values = vec![self.value()?];
        while if close.is_some() {
            self.sign(",")
        } else {
            self.goes_on() && self.sign(",")
        } {
            values.push(self.value()?);
        }
        match close {
            Some(close) if !self.sign(close) => {
                Err(self.refuse("a list goes on with a comma or ends with its bracket"))
            }
            _ => Ok(values),
        }
    }

    /// Whether a comma is next, and behind it no comparison of its own.
    fn goes_on(&mut self) -> bool {
        let before = self.at;
        let goes_on = self.sign(",") && {
            let begins_another = self.word("not")
                || self.sign("(")
                || self.name().is_some_and(|name| {
                    self.at = name.end;
                    self.word("in")
                        || self.word("not")
                        || SIGNS.iter().any(|(sign, _)| self.sign(sign))
                });
            !begins_another
        };
        self.at = before;
        goes_on
    }

    fn value(&mut self) -> Result<Value> {
        let Some(first) = self.peek() else {
            return Err(self.refuse("a value is expected here"));
        };
        let start = self.at;
        let rest = &self.text[start..];
        if matches!(first, '\'' | '"') {
            let Some(length) = rest[1..].find(first) else {
                return Err(self.refuse("a quote is not closed"));
            };
            self.at = start + length + 2;
            return Ok(Value {
                text: rest[1..1 + length].into(),
                at: start..self.at,
            });
        }
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ')' | ']');
        let length = rest.find(ends).unwrap_or(rest.len());
        if length == 0 {
            return Err(self.refuse("a value is expected here"));
        }
        self.at = start + length;
        Ok(Value {
            text: rest[..length].into(),
            at: start..self.at,
        })
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    /// A column's name, if one is next.
    fn name(&mut self) -> Option<Range<usize>> {
        self.peek()?;
        let rest = &self.text[self.at..];
        let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let length = rest.find(ends).unwrap_or(rest.len());
        (length > 0).then_some(self.at..self.at + length)
    }

    /// Takes a word, if it is next and ends there.
    fn word(&mut self, word: &str) -> bool {
        let is_it = self
            .name()
            .is_some_and(|at| self.text[at].eq_ignore_ascii_case(word));
        self.at += if is_it { word.len() } else { 0 };
        is_it
    }

    fn sign(&mut self, sign: &str) -> bool {
        let is_it = self.peek().is_some() && self.text[self.at..].starts_with(sign);
        self.at += if is_it { sign.len() } else { 0 };
        is_it
    }

    fn refuse(&mut self, reason: &str) -> Error {
        let end = self.peek().map_or(self.at, |c| self.at + c.len_utf8());
        pointing(self.text, &(self.at..end), reason)
    }
}
