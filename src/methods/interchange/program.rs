//! A high-level causal model: variables that are functions of a prompt's columns and of each other, and an output.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::expression::{Expression, Tables, Value};
use crate::error::{Error, Result};

/// The columns of one prompt.
pub type Inputs = BTreeMap<String, Value>;

/// A function of one's own, from what is known to a value.
type Own = dyn Fn(&Known<'_>) -> std::result::Result<Value, String> + Send + Sync;

/// How a variable, or the output, follows from what is known before it.
#[derive(Clone)]
pub enum Function {
    Expression(Expression),
    /// A Rust closure, and what it does in words, which stand for it in the plan of a run: change them when it changes.
    Closure(String, Arc<Own>),
}

impl Function {
    /// # Errors
    /// [`Error::Parse`] with what is wrong.
    pub fn expression(text: &str) -> Result<Self> {
        let parsed = Expression::parse(text).map_err(|reason| Error::Parse {
            what: "an expression",
            text: crate::text::shortened(text),
            reason,
        })?;
        Ok(Function::Expression(parsed))
    }

    /// A Rust closure, and what it does in words.
    pub fn closure(
        says: &str,
        own: impl Fn(&Known<'_>) -> std::result::Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        Function::Closure(says.into(), Arc::new(own))
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Function::Expression(expression) => write!(f, "{expression}"),
            Function::Closure(says, _) => write!(f, "closure: {says}"),
        }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({self})")
    }
}

/// What a function may look at: the prompt's columns, and the variables before it.
pub struct Known<'a> {
    inputs: &'a Inputs,
    variables: Vec<(&'a str, Value)>,
}

impl Known<'_> {
    /// # Errors
    /// That there is no such column, and which there are.
    pub fn get(&self, name: &str) -> std::result::Result<Value, String> {
        let of_variables = self.variables.iter().find(|(known, _)| *known == name);
        let found = of_variables.map(|(_, value)| value);
        found
            .or_else(|| self.inputs.get(name))
            .cloned()
            .ok_or_else(|| {
                let columns: Vec<&str> = self.inputs.keys().map(String::as_str).collect();
                format!(
                    "there is no column or earlier variable `{name}`; columns are {}",
                    columns.join(", ")
                )
            })
    }
}

/// A high-level causal model.
///
/// ```
/// use candlewick::methods::interchange::{Function, Program};
///
/// let program = Program::new("ioi", Function::expression("if S2 == S1 then IO else S1")?);
/// # Ok::<(), candlewick::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Program {
    pub name: String,
    /// Each may use the columns and those before it.
    pub variables: Vec<(String, Function)>,
    pub output: Function,
    pub tables: Tables,
}

impl Program {
    /// Without variables.
    pub fn new(name: &str, output: Function) -> Self {
        Program {
            name: name.into(),
            variables: Vec::new(),
            output,
            tables: Tables::new(),
        }
    }

    /// With one more variable, behind the others.
    pub fn variable(mut self, name: &str, function: Function) -> Self {
        self.variables.push((name.into(), function));
        self
    }

    /// The place of a variable.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.variables.iter().position(|(known, _)| known == name)
    }

    /// The names that its expressions read; `None` where a closure reads what nobody knows.
    pub(super) fn reads(&self) -> Option<BTreeSet<&str>> {
        let functions = self.variables.iter().map(|(_, of)| of);
        let mut all = BTreeSet::new();
        for function in functions.chain([&self.output]) {
            let Function::Expression(expression) = function else {
                return None;
            };
            all.extend(expression.names().0);
        }
        Some(all)
    }

    /// What decides its values.
    pub(super) fn settings(&self) -> Json {
        let text = |(name, function): &(String, Function)| json!([name, function.to_string()]);
        let entries = |entries: &BTreeMap<String, Value>| -> Json {
            let pairs = entries.iter();
            pairs
                .map(|(key, value)| (key.clone(), json!(value.to_string())))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "name": self.name,
            "variables": self.variables.iter().map(text).collect::<Vec<_>>(),
            "output": self.output.to_string(),
            "tables": (self.tables.iter())
                .map(|(name, of)| (name.clone(), entries(of)))
                .collect::<serde_json::Map<_, _>>(),
        })
    }

    /// Refuses a program whose names are not what a prompt has.
    /// # Errors
    /// [`Error::Invalid`] naming the variable and the column.
    pub(super) fn check(&self, columns: &BTreeSet<&str>) -> Result<()> {
        let mut known = columns.clone();
        let outputs = std::iter::once(("the output", &self.output));
        let variables = self.variables.iter().map(|(name, of)| (name.as_str(), of));
        let n = self.variables.len();
        for (at, (name, function)) in variables.chain(outputs).enumerate() {
            let refuse = |reason: String| {
                let what = match at < n {
                    true => format!("variable `{name}`"),
                    false => name.to_string(),
                };
                Error::invalid(format!("{what} of program `{}`: {reason}", self.name))
            };
            if let Function::Expression(expression) = function {
                let (names, tables) = expression.names();
                if let Some(unknown) = names.into_iter().find(|name| !known.contains(name)) {
                    let later = self.find(unknown).map(|_| "; define it above");
                    return Err(refuse(format!(
                        "there is no column `{unknown}`{}; there are {} (a task without these roles takes another program, \
                         `InterchangeConfig::program`, or columns of one's own, `InterchangeConfig::inputs`)",
                        later.unwrap_or_default(),
                        known.iter().copied().collect::<Vec<_>>().join(", ")
                    )));
                }
                if let Some(table) = tables
                    .into_iter()
                    .find(|name| !self.tables.contains_key(*name))
                {
                    return Err(refuse(format!("there is no table `{table}`")));
                }
            }
            if at < n && !known.insert(name) {
                return Err(refuse("a column or another variable has this name".into()));
            }
        }
        Ok(())
    }

    /// The values of all variables, and of the output, where some variables are set to what they are in another prompt.
    /// # Errors
    /// [`Error::Invalid`] naming the variable that has no value, and why.
    pub fn run(&self, inputs: &Inputs, set: &[(usize, &Value)]) -> Result<(Vec<Value>, Value)> {
        let mut known = Known {
            inputs,
            variables: Vec::with_capacity(self.variables.len()),
        };
        let value = |function: &Function, known: &Known<'_>| match function {
            Function::Expression(expression) => {
                expression.value(&|name| known.get(name), &self.tables)
            }
            Function::Closure(_, own) => own(known),
        };
        let refuse = |what: String, reason: String| {
            Error::invalid(format!("{what} of program `{}`: {reason}", self.name))
        };
        for (at, (name, function)) in self.variables.iter().enumerate() {
            let given = set.iter().find(|(variable, _)| *variable == at);
            let found = match given {
                Some((_, given)) => (*given).clone(),
                None => value(function, &known)
                    .map_err(|reason| refuse(format!("variable `{name}`"), reason))?,
            };
            known.variables.push((name, found));
        }
        let output =
            value(&self.output, &known).map_err(|reason| refuse("the output".into(), reason))?;
        let variables = known.variables.into_iter().map(|(_, value)| value);
        Ok((variables.collect(), output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        let text = |name: &str, value: &str| (name.to_string(), Value::from(value));
        Inputs::from([text("IO", "Mary"), text("S1", "Tom"), text("S2", "Tom")])
    }

    fn ioi() -> Program {
        Program::new(
            "ioi",
            Function::expression("if same then IO else S1").unwrap(),
        )
        .variable(
            "same",
            Function::closure("S2 is S1", |known| {
                Ok(Value::Truth(known.get("S1")? == known.get("S2")?))
            }),
        )
    }

    #[test]
    fn a_variable_that_is_set_changes_what_follows_from_it() {
        let (variables, output) = ioi().run(&inputs(), &[]).unwrap();
        assert_eq!((variables, output), (vec![true.into()], "Mary".into()));
        let (_, output) = ioi().run(&inputs(), &[(0, &Value::Truth(false))]).unwrap();
        assert_eq!(output, "Tom".into());
    }

    #[test]
    fn what_a_program_lacks_is_named() {
        let columns = BTreeSet::from(["IO", "S1", "S2"]);
        assert!(ioi().check(&columns).is_ok());
        let of = |text: &str| Function::expression(text).unwrap();
        let early = Program::new("x", of("IO"))
            .variable("a", of("b"))
            .variable("b", of("IO"));
        for (program, says) in [
            (
                Program::new("x", of("S3")),
                "the output of program `x`: there is no column `S3`",
            ),
            (
                early,
                "variable `a` of program `x`: there is no column `b`; define it above",
            ),
            (
                ioi().variable("IO", of("S1")),
                "a column or another variable has this name",
            ),
            (Program::new("x", of("t[IO]")), "no table `t`"),
        ] {
            let error = program.check(&columns).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = Program::new("x", of("IO + 1"))
            .run(&inputs(), &[])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("the output of program `x`: a text `Mary`")
        );
    }
}
