//! An expression's text as nodes.

use super::node::{Compare, Node, Value};

/// Brackets and `if` inside each other, at most.
const MOST_DEPTH: usize = 40;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// A name in backticks, which is no keyword.
    Quoted(String),
    Text(String),
    Number(f64),
    Sign(&'static str),
}

/// # Errors
/// What is no expression, and where.
pub(super) fn parsed(text: &str) -> Result<Node, String> {
    let mut reader = Reader {
        tokens: tokens(text)?,
        at: 0,
    };
    let root = reader.whole(0)?;
    match reader.peek() {
        None => Ok(root),
        Some(rest) => Err(format!(
            "{} stands behind its end; brackets may be missing",
            shown(rest)
        )),
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
