//! The part of Python's pickle format that a state dict needs, as a machine that only ever builds plain data.
//!
//! A pickle is a program: it may name any importable function and ask for a call of it. Here a name is a pair of texts and a call is
//! a record that it was asked for; nothing is looked up and nothing runs. Every value lies once in one list and refers to others by
//! index, so a value taken from the memo a million times costs a million indices, nesting needs no recursion, and memory is bounded
//! by a small multiple of the file.

use std::collections::HashMap;

/// A value's place in [`Pickle::values`].
pub type Id = usize;

/// What a pickle builds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    None,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A class or function.
    Global {
        module: &'a str,
        name: &'a str,
    },
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A call that was asked for and not made.
    Call {
        callable: Id,
        arguments: Id,
    },
    /// Something that lies outside the pickle, named by a value.
    Persistent(Id),
}

/// A finished pickle: all its values, and which of them it is.
#[derive(Debug)]
pub struct Pickle<'a> {
    pub values: Vec<Value<'a>>,
    pub top: Id,
}

impl<'a> Pickle<'a> {
    /// Runs a pickle of protocol 2 to 5 up to its `STOP`.
    /// # Errors
    /// The reason, without a path: instructions that data does not need, and programs that contradict themselves.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let start = machine.at;
            let [code] = machine.array()?;
            if code == b'.' {
                let top = machine.pop_many(1)?[0];
                let values = machine.values;
                return Ok(Pickle { values, top });
            }
            machine
                .step(code)
                .map_err(|why| format!("{why} (pickle, byte {start})"))?;
        }
    }

    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }

    /// The elements of a tuple.
    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The module and the name of a class or function.
    pub fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// A size or an offset.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A tuple of sizes, of which a tensor has few: many tensors may share one tuple, so that a long one would be read again and
    /// again.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        const MOST_AXES: usize = 8;
        let items = self.tuple(id).filter(|items| items.len() <= MOST_AXES)?;
        items.iter().map(|item| self.size(*item)).collect()
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which a `MARK` stands.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// One instruction: the number behind it and what it takes from the stack first, then what it does with them.
    fn step(&mut self, code: u8) -> Result<(), String> {
        let width = match code {
            b'K' | b'U' | b'C' | b'q' | b'h' | 0x80 | 0x8a | 0x8c => 1,
            b'M' => 2,
            b'X' | b'T' | b'B' | b'r' | b'j' => 4,
            0x8d | 0x95 => 8,
            _ => 0,
        };
        let number = self.unsigned(width)?;
        let items = match code {
            b't' | b'l' | b'e' | b'd' | b'u' | b'1' => self.pop_to_mark()?,
            b'a' | b'Q' | b'0' | 0x85 => self.pop_many(1)?,
            b's' | b'R' | b'b' | 0x81 | 0x86 | 0x93 => self.pop_many(2)?,
            0x87 => self.pop_many(3)?,
            _ => Vec::new(),
        };
        match code {
            // PROTO; FRAME, whose length is a hint for reading ahead; POP and POP_MARK.
            0x80 | 0x95 | b'0' | b'1' => {}
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool(code == 0x88)),
            b'K' | b'M' => self.push(Value::Integer(number as i64)),
            // BININT and LONG1.
            b'J' => self.integer(4)?,
            0x8a => self.integer(number)?,
            b'G' => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x));
            }
            // BINUNICODE, its short and long forms; BINSTRING and its short form, which Python 2 wrote.
            b'X' | b'T' | b'U' | 0x8c | 0x8d => {
                let text = std::str::from_utf8(self.take(number)?);
                self.push(Value::Text(text.map_err(|_| "a text is not UTF-8")?));
            }
            b'B' | b'C' => {
                let bytes = self.take(number)?;
                self.push(Value::Bytes(bytes));
            }
            b')' | b't' | 0x85..=0x87 => self.push(Value::Tuple(items)),
            b']' | b'l' => self.push(Value::List(items)),
            b'a' | b'e' => self.extend_list(&items)?,
            b'}' | b'd' => {
                self.push(Value::Dict(Vec::new()));
                self.extend_dict(&items)?;
            }
            b's' | b'u' => self.extend_dict(&items)?,
            // BINPUT, LONG_BINPUT, MEMOIZE; BINGET, LONG_BINGET.
            b'q' | b'r' => self.remember(number)?,
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' | b'j' => {
                let id = self.memo.get(&number);
                let id = id.ok_or(format!("nothing was remembered as {number}"))?;
                self.stack.push(*id);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global { module, name });
            }
            // STACK_GLOBAL.
            0x93 => match (&self.values[items[0]], &self.values[items[1]]) {
                (&Value::Text(module), &Value::Text(name)) => {
                    self.push(Value::Global { module, name });
                }
                _ => return Err("a name is not a text".to_string()),
            },
            // REDUCE and NEWOBJ: a call of a function, and of a class.
            b'R' | 0x81 => self.call(items[0], items[1]),
            // BUILD: attributes put on an object after it was made. A state dict's only one is `_metadata`, version numbers of its
            // modules; on anything else they are a call of `__setstate__`.
            b'b' => match self.values[items[0]] {
                Value::Dict(_) => self.stack.push(items[0]),
                _ => self.call(items[0], items[1]),
            },
            b'Q' => self.push(Value::Persistent(items[0])),
            _ => {
                return Err(format!(
                    "instruction {code:#04x} is not one that weights need"
                ));
            }
        }
        Ok(())
    }

    /// A call becomes a record, except for an empty ordered dictionary, which is what a state dict is.
    fn call(&mut self, callable: Id, arguments: Id) {
        let is_empty = self.values[arguments] == Value::Tuple(Vec::new());
        let value = match &self.values[callable] {
            Value::Global {
                module: "collections",
                name: "OrderedDict",
            } if is_empty => Value::Dict(Vec::new()),
            _ => Value::Call {
                callable,
                arguments,
            },
        };
        self.push(value);
    }

    /// A little-endian integer with a sign, of which we take up to eight bytes.
    fn integer(&mut self, length: u64) -> Result<(), String> {
        let bytes = self.take(length)?;
        let is_negative = bytes.last().is_some_and(|last| *last >= 0x80);
        let mut wide = if is_negative { [0xff; 8] } else { [0; 8] };
        let Some(start) = wide.get_mut(..bytes.len()) else {
            return Err(format!("an integer of {length} bytes is no size"));
        };
        start.copy_from_slice(bytes);
        self.push(Value::Integer(i64::from_le_bytes(wide)));
        Ok(())
    }

    /// A little-endian number of up to eight bytes.
    fn unsigned(&mut self, width: usize) -> Result<u64, String> {
        let bytes = self.take(width as u64)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.last()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err("something is appended to what is no list".to_string()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.last()?;
        let (pairs, odd) = items.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(dict) if odd.is_empty() => {
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            Value::Dict(_) => Err("a key has no value".to_string()),
            _ => Err("a key is set on what is no dictionary".to_string()),
        }
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// Only what was pushed since the last mark can be popped.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, String> {
        match self.stack.len().checked_sub(n) {
            Some(height) if height >= self.floor() => Ok(self.stack.split_off(height)),
            _ => Err("the stack is empty".to_string()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn last(&self) -> Result<Id, String> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err("the stack is empty".to_string()),
        }
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        self.memo.insert(key, self.last()?);
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or("a name has no end")? as u64)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| "a name is not UTF-8".to_string())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N as u64)?;
        Ok(taken
            .try_into()
            .expect("`take` gives as many bytes as asked for"))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(n)
            .ok()
            .and_then(|n| self.at.checked_add(n))
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!(
                "{n} bytes are claimed at byte {} of a pickle of {}",
                self.at,
                self.bytes.len()
            ));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], word: &str) {
        let message = Pickle::read(bytes).unwrap_err();
        assert!(message.contains(word), "`{message}` does not say `{word}`");
    }

    #[test]
    fn what_python_writes_is_read() {
        // pickle.dumps(({"a": [1, 300, -70000]}, 1 << 40, 2.5, None, True), protocol=2), memo left out.
        let bytes = b"\x80\x02(}X\x01\x00\x00\x00a](K\x01M\x2c\x01J\x90\xee\xfe\xffes\
                      \x8a\x06\x00\x00\x00\x00\x00\x01G\x40\x04\x00\x00\x00\x00\x00\x00N\x88t.";
        let pickle = Pickle::read(bytes).unwrap();
        let top = pickle.tuple(pickle.top).unwrap();
        let Value::Dict(pairs) = pickle.get(top[0]) else {
            panic!("{pickle:?}")
        };
        assert_eq!(pickle.text(pairs[0].0), Some("a"));
        let Value::List(items) = pickle.get(pairs[0].1) else {
            panic!("{pickle:?}")
        };
        let items: Vec<&Value> = items.iter().map(|id| pickle.get(*id)).collect();
        let integers = [1, 300, -70000].map(Value::Integer);
        assert_eq!(items, integers.iter().collect::<Vec<_>>());
        assert_eq!(pickle.size(top[1]), Some(1 << 40));
        assert_eq!(pickle.get(top[2]), &Value::Float(2.5));
        assert_eq!(pickle.get(top[4]), &Value::Bool(true));
    }

    #[test]
    fn a_call_is_recorded_and_not_made() {
        let pickle = Pickle::read(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap();
        let Value::Call {
            callable,
            arguments,
        } = pickle.get(pickle.top)
        else {
            panic!("{pickle:?}")
        };
        assert_eq!(pickle.global(*callable), Some(("os", "system")));
        let arguments = pickle.tuple(*arguments).unwrap();
        assert_eq!(pickle.text(arguments[0]), Some("ls"));
    }

    #[test]
    fn sharing_and_nesting_stay_small() {
        // Forty doublings would be 10^12 values if a value were copied out of the memo.
        let mut doubled = b"]q\x00".to_vec();
        for _ in 0..40 {
            doubled.extend(b"h\x00h\x00\x86q\x00");
        }
        doubled.push(b'.');
        assert_eq!(Pickle::read(&doubled).unwrap().values.len(), 41);
        let mut nested = b")".to_vec();
        nested.extend(std::iter::repeat_n(0x85, 1_000_000));
        nested.push(b'.');
        assert_eq!(Pickle::read(&nested).unwrap().values.len(), 1_000_001);
    }

    #[test]
    fn programs_that_contradict_themselves_are_refused() {
        refused(b"", "claimed");
        refused(b".", "empty");
        refused(b"N", "claimed");
        refused(b"X\xff\xff\xff\xffab.", "4294967295 bytes are claimed");
        refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "are claimed");
        refused(b"\x8a\x09123456789.", "no size");
        refused(b"cos\nsystem.", "no end");
        refused(b"X\x01\x00\x00\x00\xff.", "UTF-8");
        refused(b"t.", "no mark");
        refused(b"N(0.", "empty");
        refused(b"}(Nu.", "no value");
        refused(b"N(NNu.", "no dictionary");
        refused(b"NNa.", "no list");
        refused(b"h\x07.", "remembered as 7");
        refused(b"NN\x93.", "not a text");
        // EXT1, which looks a function up in a registry.
        refused(b"\x82\x01.", "0x82");
        for code in 0..=255 {
            let _ = Pickle::read(&[code, b'.']);
        }
    }
}
