//! One user message in the tokenizer's own chat template. The template is untrusted: it sees the message, the names of BOS and EOS
//! and, if one was given, a day; it has no files, and runs for a bounded number of steps.

use minijinja::{Environment, ErrorKind, context};

use super::{Tokenizer, broken, printable};
use crate::error::Result;

/// How many template instructions a chat template may run; a real one takes a few hundred.
const FUEL: u64 = 200_000;

impl Tokenizer {
    /// One user message, rendered by the tokenizer's own chat template, up to where the assistant begins to speak.
    ///
    /// `strftime_now` is there only if a day was given ([`Tokenizer::with_date`]): today's would make results differ from day to day.
    /// # Errors
    /// [`crate::Error::Tokenizer`] if there is no template, or it fails; [`crate::Error::NoDate`] if it insists on a day.
    pub fn chat(&self, user_text: &str) -> Result<String> {
        let Some(template) = &self.chat_template else {
            return Err(broken(
                "it has no chat template; leave it out, or put a chat_template.jinja beside tokenizer.json",
            ));
        };
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        if let Some(date) = self.date {
            env.add_function("strftime_now", move |format: String| {
                date.formatted(&format)
            });
        }
        let text_of = |id: Option<u32>| {
            id.and_then(|id| self.inner.id_to_token(id))
                .unwrap_or_default()
        };
        let rendered = env.render_str(
            &without_generation_marks(template),
            context! {
                messages => [context! { role => "user", content => user_text }],
                add_generation_prompt => true,
                bos_token => text_of(self.bos),
                eos_token => text_of(self.eos),
            },
        );
        rendered.map_err(|error| {
            let text = error.to_string();
            if error.kind() == ErrorKind::UnknownFunction && text.contains("strftime_now") {
                return crate::Error::NoDate;
            }
            broken(format!("its chat template failed: {}", printable(&text)))
        })
    }
}

/// A template in which `{% generation %}` and its end, which only mark what a model is trained on, are a condition that always holds.
fn without_generation_marks(template: &str) -> String {
    let mut kept = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        // What ends a tag is not what begins it: `{%}` is open still.
        let inside = &rest[start + 2..];
        let Some(length) = inside.find("%}") else {
            break;
        };
        let (tag, end) = (&inside[..length], start + 2 + length + 2);
        let signs: &[char] = &['-', '+'];
        let word = tag.trim_matches(signs).trim();
        let replaced = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        kept.push_str(&rest[..start]);
        match replaced {
            None => kept.push_str(&rest[start..end]),
            Some(statement) => {
                let sign = |at: Option<char>| at.filter(|c| signs.contains(c)).map(String::from);
                let before = sign(tag.chars().next()).unwrap_or_default();
                let after = sign(tag.chars().last()).unwrap_or_default();
                kept.push_str(&format!("{{%{before} {statement} {after}%}}"));
            }
        }
        rest = &rest[end..];
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::super::tests::byte_level;

    #[test]
    fn chat_wraps_one_user_message_and_bos_is_not_doubled() {
        let config = serde_json::json!({
            "bos_token": "<|end|>",
            "chat_template": [{"name": "default", "template":
                "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'].strip() }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"}],
        });
        let tokenizer = byte_level(Some(&config.to_string()));
        let text = tokenizer.chat(" hi ").unwrap();
        assert_eq!(text, "<|end|>[user]hi[me]");
        let encoded = tokenizer.encode(&text, true).unwrap();
        assert_eq!(encoded.ids.iter().filter(|&&id| id == 257).count(), 1);
        assert!(tokenizer.is_special(257) && !tokenizer.is_special(256));
    }

    #[test]
    fn a_hostile_chat_template_is_an_error() {
        for (template, says) in [
            (
                "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
                "fuel",
            ),
            ("{{ raise_exception('no system role') }}", "no system role"),
            ("{% include 'secret' %}", "template"),
            ("{% if", "chat template failed"),
            ("{%}{% endif %}", "chat template failed"),
        ] {
            let config = serde_json::json!({"chat_template": template}).to_string();
            let message = byte_level(Some(&config))
                .chat("hi")
                .unwrap_err()
                .to_string();
            assert!(message.contains(says), "{message}");
            assert!(!message.contains('\n'));
        }
        assert!(
            byte_level(None)
                .chat("hi")
                .unwrap_err()
                .to_string()
                .contains("no chat template")
        );
    }

    fn chat(template: &str, date: Option<&str>) -> crate::error::Result<String> {
        let config = serde_json::json!({ "chat_template": template }).to_string();
        let date = date.map(|date| date.parse().unwrap());
        byte_level(Some(&config)).with_date(date).chat("hi")
    }

    #[test]
    fn a_template_that_asks_whether_there_is_a_clock_finds_none_unless_a_day_is_given() {
        let asks = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}some day{% endif %}";
        assert_eq!(chat(asks, None).unwrap(), "some day");
        assert_eq!(chat(asks, Some("2024-07-26")).unwrap(), "26 Jul 2024");
        let insists = "{{ strftime_now('%Y') }}";
        assert!(matches!(chat(insists, None), Err(crate::Error::NoDate)));
        assert_eq!(chat(insists, Some("2024-07-26")).unwrap(), "2024");
    }

    #[test]
    fn marks_of_what_is_trained_on_say_nothing() {
        for (marked, text) in [
            ("a{% generation %}b{% endgeneration %}c", "abc"),
            ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
            (
                "{% if true %}{%- generation %} b{% endgeneration %}{% endif %}",
                " b",
            ),
            (
                "{{ 'generation' }} {% set generation = 1 %}{{ generation }}",
                "generation 1",
            ),
        ] {
            assert_eq!(chat(marked, None).unwrap(), text, "{marked}");
        }
    }
}
