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
                let top = machine.pop()?;
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
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// One instruction. Their names are those of Python's `pickletools`.
    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            // PROTO; FRAME, whose length is a hint for reading ahead.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),

            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let n = u8::from_le_bytes(self.array()?);
                self.push(Value::Integer(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Integer(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Integer(n.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x));
            }
            // BINUNICODE, its short and long forms; BINSTRING and its short form, which Python 2 wrote.
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length.into())?;
            }
            0x8c | b'U' => {
                let length = u8::from_le_bytes(self.array()?);
                self.text(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.array()?);
                self.text(length)?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.array()?);
                self.raw_bytes(length.into())?;
            }
            b'C' => {
                let length = u8::from_le_bytes(self.array()?);
                self.raw_bytes(length.into())?;
            }

            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let length = usize::from(code - 0x84);
                let items = self.pop_many(length)?;
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend_list(&items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(Vec::new()));
                self.extend_dict(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.extend_dict(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }

            b'q' => {
                let key = u8::from_le_bytes(self.array()?);
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).map_err(|_| "the memo is full")?;
                self.remember(key)?;
            }
            b'h' => {
                let key = u8::from_le_bytes(self.array()?);
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global { module, name });
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let (&Value::Text(module), &Value::Text(name)) =
                    (&self.values[parts[0]], &self.values[parts[1]])
                else {
                    return Err("a name is not a text".to_string());
                };
                self.push(Value::Global { module, name });
            }
            // REDUCE and NEWOBJ: a call of a function, and of a class.
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?;
                self.call(parts[0], parts[1]);
            }
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
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

    /// Attributes put on an object after it was made. A state dict's only one is `_metadata`, version numbers of its modules;
    /// on anything else they are a call of `__setstate__`.
    fn build(&mut self) -> Result<(), String> {
        let parts = self.pop_many(2)?;
        let (object, state) = (parts[0], parts[1]);
        match self.values[object] {
            Value::Dict(_) => self.stack.push(object),
            _ => self.call(object, state),
        }
        Ok(())
    }

    /// A little-endian integer of any length, of which we take up to eight bytes.
    fn long(&mut self) -> Result<(), String> {
        let length = u8::from_le_bytes(self.array()?);
        let bytes = self.take(length.into())?;
        let mut wide = match bytes.last() {
            Some(last) if *last >= 0x80 => [0xff; 8],
            _ => [0; 8],
        };
        let Some(start) = wide.get_mut(..bytes.len()) else {
            return Err(format!("an integer of {length} bytes is no size"));
        };
        start.copy_from_slice(bytes);
        self.push(Value::Integer(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<(), String> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8")?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn raw_bytes(&mut self, length: u64) -> Result<(), String> {
        let bytes = self.take(length)?;
        self.push(Value::Bytes(bytes));
        Ok(())
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

    fn pop(&mut self) -> Result<Id, String> {
        Ok(self.pop_many(1)?[0])
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

    fn remember(&mut self, key: u32) -> Result<(), String> {
        self.memo.insert(key, self.last()?);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = self.memo.get(&key);
        self.stack
            .push(*id.ok_or(format!("nothing was remembered as {key}"))?);
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
        nested.extend([0x85; 1_000_000]);
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
