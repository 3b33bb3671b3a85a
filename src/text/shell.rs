//! Command lines as a shell reads them back.

/// A command line that a POSIX shell (or bash) reads back as these arguments, on one line and without control characters.
pub fn shell_quoted(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let quoted = argv.iter().map(|argument| {
        if !argument.is_empty() && argument.chars().all(plain) {
            return argument.clone();
        }
        if argument.chars().any(is_hidden) {
            return ansi_c_quoted(argument);
        }
        format!("'{}'", argument.replace('\'', r"'\''"))
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Control characters, and those that turn the direction of text around.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `$'...'`: the bytes of hidden characters as octal escapes of three digits, which no following digit can join.
fn ansi_c_quoted(argument: &str) -> String {
    let mut text = String::from("$'");
    for c in argument.chars() {
        match c {
            '\\' | '\'' => text.extend(['\\', c]),
            c if is_hidden(c) => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    text += &format!("\\{byte:03o}");
                }
            }
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let arguments = [
            "--out=a.parquet",
            "",
            "it's $HOME `ls` \"x\" \\n",
            "a\u{1b}[31m",
            "line\nbreak\t7",
            "caf\u{e9} \u{7}1",
            "\u{202e}abc",
            "*?[a]~!#",
        ];
        let arguments = arguments.map(String::from).to_vec();
        let quoted = shell_quoted(&arguments);
        assert!(!quoted.chars().any(is_hidden), "{quoted}");
        let script = format!("printf '%s\\0' {quoted}");
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: there is no bash to read it back");
            return;
        };
        let read = String::from_utf8(output.stdout).expect("what went in was UTF-8");
        let read: Vec<&str> = read.split_terminator('\0').collect();
        assert_eq!(read, arguments);
    }
}
