//! Expressions of a high-level program: names, texts, numbers, comparisons, `if a then b else c`, lookups. They cannot loop, and what
//! they nest and hold is bounded, so that an expression from a stranger's file ends.

use std::fmt;

pub use super::node::{Tables, Value};

use super::node::Node;
use super::parse::parsed;

/// A longer expression is refused.
const MOST_BYTES: usize = 2000;

/// A parsed expression; it prints as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    text: String,
    root: Node,
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
        Ok(Expression {
            text: text.trim().into(),
            root: parsed(text)?,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
