//! Expressions of a high-level program: names, texts, numbers, comparisons, `if a then b else c`, lookups. They cannot loop, and what
//! they nest and hold is bounded, so that an expression from a stranger's file ends.

use std::collections::BTreeMap;
use std::fmt;

/// A longer expression is refused.
const MOST_BYTES: usize = 2000;
/// Brackets, `not` and `if` inside each other, at most.
const MOST_DEPTH: usize = 40;
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

/// A parsed expression; it prints as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    text: String,
    root: Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
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

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// A name in backticks, which is no keyword.
    Quoted(String),
    Text(String),
    Number(f64),
    Sign(&'static str),
}

impl Expression {
    /// Reads an expression: names (letters, digits, `_` and `.`, or anything in backticks), texts in quotes, numbers, `true`, `false`,
    /// `not`, `and`, `or`, `== != < <= > >=`, `+` (which joins texts) and `-`, `if a then b else c`, `table[key]`, `number(x)`,
    /// `text(x)`, brackets.
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MOST_BYTES {
            return Err(format!(
                "it has {} bytes, at most {MOST_BYTES} are taken; name its parts as variables of their own",
                text.len()
            ));
        }
        let mut reader = Reader {
            tokens: tokens(text)?,
            at: 0,
        };
        let root = reader.whole(0)?;
        if let Some(rest) = reader.peek() {
            return Err(format!(
                "{} stands behind its end; brackets may be missing",
                shown(rest)
            ));
        }
        Ok(Expression {
            text: text.trim().into(),
            root,
        })
    }

    /// The columns and variables that it reads, and its tables.
    pub fn names(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut names, mut tables) = (Vec::new(), Vec::new());
        self.root.collect(&mut names, &mut tables);
        (names, tables)
    }

    /// Its value, where names have those that `known` gives.
    /// # Errors
    /// What has no value.
    pub fn value(
        &self,
        known: &dyn Fn(&str) -> Result<Value, String>,
        tables: &Tables,
    ) -> Result<Value, String> {
        self.root.value(known, tables)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    fn collect<'a>(&'a self, names: &mut Vec<&'a str>, tables: &mut Vec<&'a str>) {
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

    fn value(
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

struct Reader {
    tokens: Vec<Token>,
    at: usize,
}

impl Reader {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let is_it = match self.peek() {
            Some(Token::Word(word)) => word == wanted,
            Some(Token::Sign(sign)) => *sign == wanted,
            _ => false,
        };
        self.at += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        if self.takes(wanted) {
            return Ok(());
        }
        Err(match self.peek() {
            Some(found) => format!("`{wanted}` is missing before {}", shown(found)),
            None => format!("`{wanted}` is missing at its end"),
        })
    }

    fn whole(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MOST_DEPTH {
            return Err(format!(
                "it nests deeper than {MOST_DEPTH}; name its parts as variables of their own"
            ));
        }
        if self.takes("if") {
            let condition = self.whole(depth + 1)?;
            self.expect("then")?;
            let yes = self.whole(depth + 1)?;
            self.expect("else")?;
            let no = self.whole(depth + 1)?;
            return Ok(Node::If(Box::new([condition, yes, no])));
        }
        let mut any = vec![self.all(depth)?];
        while self.takes("or") {
            any.push(self.all(depth)?);
        }
        Ok(one_or(any, Node::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Node, String> {
        let mut all = vec![self.comparison(depth)?];
        while self.takes("and") {
            all.push(self.comparison(depth)?);
        }
        Ok(one_or(all, Node::All))
    }

    fn comparison(&mut self, depth: usize) -> Result<Node, String> {
        let mut negations = 0;
        while self.takes("not") {
            negations += 1;
        }
        let left = self.sum(depth)?;
        let signs = [
            ("==", Compare::Equal),
            ("!=", Compare::Unequal),
            ("<=", Compare::AtMost),
            (">=", Compare::AtLeast),
            ("<", Compare::Less),
            (">", Compare::Greater),
        ];
        let node = match signs.into_iter().find(|(sign, _)| self.takes(sign)) {
            Some((_, how)) => Node::Compare(how, Box::new([left, self.sum(depth)?])),
            None => left,
        };
        Ok(match negations {
            0 => node,
            // An even number of them still asks for true or false.
            n => {
                let not = Node::Not(Box::new(node));
                if n % 2 == 1 {
                    not
                } else {
                    Node::Not(Box::new(not))
                }
            }
        })
    }

    fn sum(&mut self, depth: usize) -> Result<Node, String> {
        let first = self.atom(depth)?;
        let mut rest = Vec::new();
        loop {
            let adds = self.takes("+");
            if !adds && !self.takes("-") {
                break;
            }
            rest.push((adds, self.atom(depth)?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Node::Sum(Box::new(first), rest),
        })
    }

    fn atom(&mut self, depth: usize) -> Result<Node, String> {
        let Some(token) = self.peek().cloned() else {
            return Err("it ends where a value is asked for".into());
        };
        self.at += 1;
        Ok(match token {
            Token::Text(text) => Node::Literal(Value::Text(text)),
            Token::Number(number) => Node::Literal(Value::Number(number)),
            Token::Quoted(name) => Node::Name(name),
            Token::Word(word) => match word.as_str() {
                "true" => Node::Literal(Value::Truth(true)),
                "false" => Node::Literal(Value::Truth(false)),
                "if" | "then" | "else" | "and" | "or" | "not" => {
                    return Err(format!(
                        "`{word}` stands where a value is asked for; put brackets around an inner `if` or `not`"
                    ));
                }
                _ if self.takes("[") => {
                    let key = self.whole(depth + 1)?;
                    self.expect("]")?;
                    Node::Lookup(word, Box::new(key))
                }
                _ if self.takes("(") => {
                    let inner = Box::new(self.whole(depth + 1)?);
                    self.expect(")")?;
                    match word.as_str() {
                        "number" => Node::Number(inner),
                        "text" => Node::Text(inner),
                        _ => {
                            return Err(format!(
                                "there is no function `{word}`; there are `number` and `text`"
                            ));
                        }
                    }
                }
                _ => Node::Name(word),
            },
            Token::Sign("(") => {
                let inner = self.whole(depth + 1)?;
                self.expect(")")?;
                inner
            }
            other => {
                return Err(format!(
                    "{} stands where a value is asked for",
                    shown(&other)
                ));
            }
        })
    }
}

fn one_or(mut parts: Vec<Node>, all: fn(Vec<Node>) -> Node) -> Node {
    match parts.len() {
        1 => parts.remove(0),
        _ => all(parts),
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(text) | Token::Quoted(text) => format!("`{text}`"),
        Token::Text(text) => format!("\"{text}\""),
        Token::Number(number) => format!("`{number}`"),
        Token::Sign(sign) => format!("`{sign}`"),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    const SIGNS: [&str; 12] = [
        "==", "!=", "<=", ">=", "<", ">", "+", "-", "(", ")", "[", "]",
    ];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = if matches!(first, '"' | '\'' | '`') {
            let inner = &rest[1..];
            let Some(end) = inner.find(first) else {
                return Err(format!("a {first} is not closed"));
            };
            let inner = inner[..end].to_string();
            tokens.push(match first {
                '`' => Token::Quoted(inner),
                _ => Token::Text(inner),
            });
            end + 2
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            tokens.push(Token::Sign(sign));
            sign.len()
        } else {
            let is_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
            let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
            let word = &rest[..end];
            if word.is_empty() {
                return Err(format!(
                    "`{}` is no sign of an expression{}",
                    crate::text::visible(&first.to_string()),
                    if first == '=' {
                        "; two values are compared with `==`"
                    } else {
                        ""
                    }
                ));
            }
            tokens.push(match first.is_ascii_digit() {
                true => {
                    let number = word.parse().ok().filter(|number: &f64| number.is_finite());
                    Token::Number(number.ok_or_else(|| {
                        format!("`{word}` is no number; put a name that begins with a digit in backticks")
                    })?)
                }
                false => Token::Word(word.into()),
            });
            end
        };
        rest = rest[taken..].trim_start();
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<Value, String> {
        let known = |name: &str| match name {
            "S1" | "S2" => Ok(Value::from("Tom")),
            "IO" => Ok(Value::from("Mary")),
            "S1+1" => Ok(Value::from("and")),
            "IO.pos" => Ok(Value::from(1.0)),
            _ => Err(format!("no column `{name}`")),
        };
        let capital = BTreeMap::from([("Mary".to_string(), Value::from("Rome"))]);
        let tables = BTreeMap::from([("capital".to_string(), capital)]);
        Expression::parse(text)?.value(&known, &tables)
    }

    #[test]
    fn an_expression_has_the_value_that_it_says() {
        for (text, expected) in [
            ("if S1 == S2 then IO else S1", Value::from("Mary")),
            ("if not S1 == S2 then IO else S1", Value::from("Tom")),
            ("S1 == IO or S1 != IO and true", true.into()),
            ("not not (S1 == IO)", false.into()),
            ("S1 + ' ' + \"x\" == 'Tom x'", true.into()),
            ("IO.pos + 2 - 0.5", 2.5.into()),
            ("number('07') < 8 and text(8) == '8'", true.into()),
            ("`S1+1`", Value::from("and")),
            ("capital[IO]", Value::from("Rome")),
            ("capital[if S1 == 'x' then S1 else IO]", Value::from("Rome")),
            ("if false then 1 else if true then 2 else 3", 2.0.into()),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
        let both = Expression::parse("capital[a] + b.c").unwrap();
        assert_eq!(both.names(), (vec!["a", "b.c"], vec!["capital"]));
    }

    #[test]
    fn what_is_no_expression_is_said_and_nothing_panics() {
        for (text, says) in [
            ("", "it ends where"),
            ("S1 = S2", "compared with `==`"),
            ("(S1", "`)` is missing at its end"),
            ("if S1 == S2 then IO", "`else` is missing"),
            ("S1 S2", "stands behind its end"),
            ("'x", "not closed"),
            ("1x", "no number"),
            ("S1 == 3", "a text `Tom` is compared with a number `3`"),
            ("S1 and true", "true or false is asked for"),
            ("S1 + 1", "no sum"),
            ("number(S1)", "no number"),
            ("capital[S1]", "table `capital` has no `Tom`"),
            ("towns[S1]", "no table `towns`"),
            ("S9", "no column `S9`"),
            ("length(S1)", "no function `length`"),
            ("S1 + if true then IO else S1", "brackets around"),
            ("\u{7}", "no sign"),
        ] {
            let error = value(text).expect_err(text);
            assert!(
                error.contains(says) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
        let deep = format!("{}S1{}", "(".repeat(900), ")".repeat(900));
        assert!(value(&deep).expect_err("deep").contains("nests deeper"));
        assert!(
            value(&"x".repeat(3000))
                .expect_err("long")
                .contains("bytes")
        );
        assert_eq!(value(&("not ".repeat(400) + "true")), Ok(true.into()));
        assert_eq!(value(&("true and ".repeat(200) + "true")), Ok(true.into()));
        // Any beginning and any middle of an expression is one, or an error.
        let whole =
            "if not (S1 == 'é') then capital[IO] + `S1+1` else number('2') - 1.5e3 <= \"ü\"";
        for (at, _) in whole.char_indices() {
            let _ = value(&whole[..at]);
            let _ = value(&whole[at..]);
        }
    }
}
