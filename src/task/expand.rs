//! Templates, filled by a seed, to token pairs.
//!
//! Candidate number `i` depends on the seed and on `i` alone, never on the tokenizer: its template is number `i` in turn, its clean
//! words come from one random stream of its own and its corruption from another. So two tokenizers see the same prompts, except
//! for those that one of them cannot use, and two corruptions of a task have the same clean prompts. Candidates are drawn until
//! enough of them are usable, or until it is clear that they never will be.

use super::checked::{MAX_PAIRS, Repeats, Task};
use super::file::{TaskFile, TaskKind, bad};
use super::fill::{Change, draft, frames, stream};
use super::options::ExpandOptions;
use super::pair::Pair;
use super::repeated;
use super::tokenise::{Candidate, DerivedRole, TokeniseSetting, tokenise};
use crate::error::{Dropped, Result};
use crate::model::Tokenizer;

/// Drawing stops after so many unusable candidates in a row ...
const PATIENCE: usize = 1_000;
/// ... and after so many candidates for each pair asked for, above that.
const ATTEMPTS_PER_PAIR: usize = 20;

/// Makes a task of a task file under one tokenizer.
/// # Errors
/// [`crate::Error::BadTask`] if the file contradicts itself (a slot without a list, an unknown corruption), or more than
/// [`MAX_PAIRS`] are asked for; [`crate::Error::EmptyTask`] if no pair is usable; [`crate::Error::Tokenizer`] if BOS or
/// chat is asked for and the tokenizer has none.
pub fn expand(file: &TaskFile, tokenizer: &Tokenizer, options: &ExpandOptions) -> Result<Task> {
    let asked = options.n_pairs.unwrap_or(file.n_pairs);
    if asked == 0 || asked > MAX_PAIRS {
        return Err(bad(
            &file.name,
            format!("{asked} pairs were asked for; ask for 1 to {MAX_PAIRS}"),
        ));
    }
    let seed = options.seed.unwrap_or(file.seed);
    let metric = options.metric.unwrap_or(file.metric);
    let bos = options.bos.resolve(tokenizer)?;
    let corruption = options.corruption.as_deref().unwrap_or(&file.corruption);

    let (pairs, dropped) = match file.kind {
        TaskKind::Templates => {
            let derived_roles = derived_roles(file)?;
            let setting = TokeniseSetting {
                tokenizer,
                bos,
                chat: options.chat,
                max_tokens: options.max_tokens,
                metric,
                unequal: options.unequal,
                may_melt: false,
                derived_roles: &derived_roles,
            };
            let frames = frames(file)?;
            let change = Change::parse(file, corruption)?;
            let chosen = chosen_templates(file, &options.templates)?;
            collect(asked, |index| {
                let template = chosen[index % chosen.len()];
                let draft = draft(file, &frames, &change, seed, index, template)
                    .map_err(|reason| bad(&file.name, reason))?;
                tokenise(draft, &setting)
            })?
        }
        TaskKind::RepeatedTokens => {
            let source =
                repeated::RepeatedTokensSource::new(file, tokenizer, bos, corruption, options)?;
            collect(asked, |index| {
                source.candidate(&mut stream(seed, index, 0), index)
            })?
        }
    };
    Ok(Task {
        seed,
        bos,
        chat: options.chat,
        source: file.text.clone(),
        corruption: corruption.to_owned(),
        asked,
        ..Task::of_numbered(file.name.clone(), tokenizer, metric, pairs, dropped)?
    })
}

/// The templates to draw from, in turn: those named, or all.
fn chosen_templates(file: &TaskFile, named: &[usize]) -> Result<Vec<usize>> {
    let count = file.templates.len();
    match named.iter().find(|&&template| template >= count) {
        Some(template) => Err(bad(
            &file.name,
            format!("there is no template {template}; it has {count}, numbered from 0"),
        )),
        None if named.is_empty() => Ok((0..count).collect()),
        None => Ok(named.to_vec()),
    }
}

/// Draws candidates until `asked` of them are usable and different.
fn collect(
    asked: usize,
    mut candidate: impl FnMut(usize) -> Result<Candidate>,
) -> Result<(Vec<Pair>, Vec<Dropped>)> {
    let (mut pairs, mut dropped) = (Vec::new(), Vec::new());
    let mut seen = Repeats::default();
    let mut in_vain = 0;
    for index in 0..asked
        .saturating_mul(ATTEMPTS_PER_PAIR)
        .saturating_add(PATIENCE)
    {
        if pairs.len() == asked || in_vain == PATIENCE {
            break;
        }
        in_vain += 1;
        match candidate(index)? {
            Err(drop) => dropped.push(drop),
            Ok(pair) => match seen.reason(&pair) {
                Some(reason) => dropped.push(pair.dropped(reason)),
                None => {
                    pairs.push(pair);
                    in_vain = 0;
                }
            },
        }
    }
    Ok((pairs, dropped))
}

fn derived_roles(file: &TaskFile) -> Result<Vec<DerivedRole>> {
    file.roles
        .iter()
        .map(|name| {
            DerivedRole::parse(name).ok_or_else(|| {
                bad(&file.name, format!("`{name}` in `roles` is not a role and a distance; write e.g. `S1+1` or `IO-1`"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::tokenizer::tests::{word_level, word_level_split};
    use crate::task::file::{Answer, List};
    use crate::task::shipped;
    use crate::task::template::Template;

    /// A tokenizer that knows every word of a task file as one token, which no real one does. Digits stand alone, as in many
    /// newer vocabularies, or in twos, as in GPT-2's.
    fn tokenizer_for(file: &TaskFile, digits: &str) -> Tokenizer {
        let mut text = String::new();
        for template in &file.templates {
            let slotless = Template::parse(template.text())
                .unwrap()
                .fill(|_| Ok(" ".into()))
                .unwrap();
            text.push_str(&slotless.text);
            text.push(' ');
        }
        for column in file.lists.values().flat_map(|list| list.columns.values()) {
            text.push_str(&column.join(" "));
            text.push(' ');
        }
        let mut words: Vec<&str> = text
            .split(|c: char| !c.is_alphabetic())
            .filter(|word| !word.is_empty())
            .collect();
        words.extend(["'", ",", ".", "?", ":", "(", "):", "\"\"\""]);
        let numbers: Vec<String> = (0..100)
            .flat_map(|n| [n.to_string(), format!("{n:02}")])
            .collect();
        // For the task that is made of the vocabulary itself.
        let extra: Vec<String> = ('a'..='z')
            .flat_map(|a| ('a'..='z').map(move |b| format!("zq{a}{b}")))
            .collect();
        let words = words
            .into_iter()
            .chain(numbers.iter().chain(&extra).map(String::as_str));
        word_level_split(words, &format!(r"{digits}|\p{{L}}+|[^\w\s]+"))
    }

    fn small(tail: &str) -> TaskFile {
        let text = format!(
            r#"
            name = "small"
            about = "a"
            source = "b"
            claim = "c"
            metric = "logit_diff"
            corruption = "flip"
            answer = " {{IO}}"
            wrong = " {{S}}"
            roles = ["S1+1"]
            slots = {{ IO = "name", S = "name" }}
            lists.name = ["Al", "Bo", "Cy", "Di", "Ed"]
            templates = ["{{IO}} and {{S:S1}} met, {{S:S2}} saw", "{{S:S1}} and {{IO}} met, {{S:S2}} saw"]
            [corruptions]
            flip = {{ about = "d", set = {{ S2 = "{{IO}}" }} }}
            abc = {{ about = "d", draw = {{ IO = "name", S1 = "name", S2 = "name" }} }}
            {tail}
            "#
        );
        TaskFile::parse(&text, "small").unwrap()
    }

    fn words() -> Tokenizer {
        word_level(["Al", "Bo", "Cy", "Di", "Ed", "and", "met", ",", "saw"])
    }

    fn asked(n_pairs: usize) -> ExpandOptions {
        ExpandOptions {
            n_pairs: Some(n_pairs),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_may_leave_the_space_in_front_of_its_answers_to_us() {
        let written = small("");
        let spaced = TaskFile::parse(
            &written.text.replace(
                "answer = \" {IO}\"",
                "answer = \"{IO}\"\nanswer_space = true",
            ),
            "small",
        )
        .unwrap();
        let task = |file: &TaskFile| expand(file, &words(), &asked(4)).unwrap();
        let answers = |file: &TaskFile| -> Vec<Vec<u32>> {
            let task = task(file);
            let pairs = task.pairs().iter();
            pairs.map(|pair| pair.target.answers.clone()).collect()
        };
        assert_eq!(answers(&spaced), answers(&written));
        // Without it the answer is the prompt's last word and more.
        let joined = written
            .text
            .replace("answer = \" {IO}\"", "answer = \"{IO}\"");
        let joined = TaskFile::parse(&joined, "small").unwrap();
        let usable = expand(&joined, &words(), &asked(4)).map_or(0, |task| task.pairs().len());
        assert_eq!(usable, 0);
    }

    #[test]
    fn a_template_becomes_prompts_with_roles_and_answers() {
        let task = expand(&small(""), &words(), &asked(4)).unwrap();
        let (abba, baba) = (&task.pairs()[0], &task.pairs()[1]);
        let io = abba.clean[1];
        assert_eq!(abba.target.answers, [io]);
        assert_eq!(abba.target.wrong, [abba.clean[3]]);
        assert_eq!(abba.clean[6], abba.clean[3]);
        assert_eq!(abba.corrupted[6], io);
        assert_eq!(abba.roles["IO"], [1]);
        assert_eq!(abba.roles["S1+1"], [4]);
        assert_eq!(abba.roles["S2"], [6]);
        assert_eq!(abba.roles["END"], [7]);
        assert_eq!((baba.roles["IO"][0], baba.roles["S1"][0]), (3, 1));
        assert_eq!((abba.template, baba.template), (0, 1));
        assert!(task.bos && !task.chat && task.corruption == "flip");
    }

    #[test]
    fn the_seed_decides_and_corruptions_share_their_clean_prompts() {
        let file = small("");
        let task = expand(&file, &words(), &asked(10)).unwrap();
        let again = expand(&file, &words(), &asked(10)).unwrap();
        assert_eq!(
            (task.pairs(), &task.dropped),
            (again.pairs(), &again.dropped)
        );
        let other = expand(
            &file,
            &words(),
            &ExpandOptions {
                seed: Some(1),
                ..asked(10)
            },
        )
        .unwrap();
        assert_ne!(task.token_hash(), other.token_hash());
        let with_abc = ExpandOptions {
            corruption: Some("abc".into()),
            ..asked(10)
        };
        let abc = expand(&file, &words(), &with_abc).unwrap();
        for flipped in task.pairs() {
            let Some(replaced) = abc.pairs().iter().find(|pair| pair.index == flipped.index) else {
                continue;
            };
            assert_eq!(flipped.clean, replaced.clean);
            assert_ne!(flipped.corrupted, replaced.corrupted);
        }
        assert!(
            abc.pairs()
                .iter()
                .filter(|pair| task.pairs().iter().any(|other| other.index == pair.index))
                .count()
                > 5
        );
        let four = TaskFile::parse(&file.text.replace(", \"Ed\"", ""), "four").unwrap();
        let too_few = expand(&four, &words(), &with_abc).unwrap_err().to_string();
        assert!(too_few.contains("list `name` has 4 entries"), "{too_few}");
    }

    #[test]
    fn a_word_the_tokenizer_lacks_drops_pairs_and_leaves_the_others_as_they_were() {
        let file = small("");
        let poorer = word_level(["Al", "Bo", "Cy", "Di", "and", "met", ",", "saw"]);
        let (all, some) = (
            expand(&file, &words(), &asked(12)).unwrap(),
            expand(&file, &poorer, &asked(8)).unwrap(),
        );
        assert!(some.dropped.iter().any(|d| d.reason.contains("`Ed`")));
        for pair in some.pairs() {
            if let Some(same) = all.pairs().iter().find(|other| other.index == pair.index) {
                assert_eq!(same.clean_text, pair.clean_text);
            }
        }
    }

    #[test]
    fn a_small_task_ends_when_all_pairs_are_drawn() {
        // Two templates, five names: 2 * 5 * 4 different pairs.
        let task = expand(&small(""), &words(), &asked(1000)).unwrap();
        assert_eq!(task.pairs().len(), 40);
        assert!(task.dropped.iter().all(|d| d.kind() == "repeated"));
        assert_eq!(task.asked, 1000);
    }

    #[test]
    fn nonsense_in_a_file_is_an_error_of_one_line() {
        let check = |file: TaskFile, options: ExpandOptions, says: &str| {
            let message = expand(&file, &words(), &options).unwrap_err().to_string();
            assert!(
                message.contains(says) && !message.contains('\n'),
                "{message}"
            );
        };
        let with = |change: &dyn Fn(&mut TaskFile)| {
            let mut file = small("");
            change(&mut file);
            file
        };
        let template = |text: &str| vec![crate::task::file::TemplateEntry::Text(text.into())];
        check(
            small(""),
            ExpandOptions {
                corruption: Some("x".into()),
                ..asked(1)
            },
            "it has abc, flip",
        );
        check(small(""), asked(0), "ask for 1 to");
        check(small(""), asked(MAX_PAIRS + 1), "ask for 1 to");
        check(
            with(&|f| f.templates = template("{PLACE}")),
            asked(1),
            "slot `PLACE` has no list",
        );
        check(
            with(&|f| f.templates = template("{S} and {S}")),
            asked(1),
            "stands twice",
        );
        check(
            with(&|f| f.templates = template("{IO} and {S}")),
            asked(1),
            "changes `S2`",
        );
        check(with(&|f| f.answer = None), asked(1), "no `answer`");
        check(
            with(&|f| f.answer = Some(Answer::One(" {X}".into()))),
            asked(1),
            "neither a slot nor a role",
        );
        check(
            with(&|f| f.answer = Some(Answer::One(" {IO.capital}".into()))),
            asked(1),
            "no column `capital`",
        );
        check(
            with(&|f| f.roles = vec!["S1".into()]),
            asked(1),
            "write e.g. `S1+1`",
        );
        check(
            small(""),
            ExpandOptions {
                max_tokens: Some(3),
                ..asked(1)
            },
            "too long: 8 tokens",
        );
    }

    #[test]
    fn the_part_of_a_list_above_an_entry_is_the_answer() {
        let mut file = small("");
        let spaced = file.lists["name"]
            .words()
            .iter()
            .map(|word| format!(" {word}"))
            .collect();
        let spaced = List {
            columns: BTreeMap::from([(List::TEXT.to_owned(), spaced)]),
        };
        file.lists.insert("spaced".into(), spaced);
        file.answer = Some(Answer::Above {
            above: " {IO}".into(),
            list: "spaced".into(),
        });
        file.wrong = Some(Answer::UpTo {
            upto: " {IO}".into(),
            list: "spaced".into(),
        });
        let task = expand(&file, &words(), &asked(10)).unwrap();
        for pair in task.pairs() {
            let io = pair.clean[pair.roles["IO"][0]];
            assert!(
                pair.target.answers.iter().all(|&id| id > io)
                    && pair.target.wrong.iter().all(|&id| id <= io)
            );
            assert_eq!(pair.target.columns().len(), 5);
        }
    }

    #[test]
    fn every_shipped_task_expands_under_every_corruption() {
        for name in shipped() {
            let file = TaskFile::open(name).unwrap();
            let tokenizer = tokenizer_for(&file, r"\d");
            let mut corruptions: Vec<Option<String>> =
                file.corruptions.keys().cloned().map(Some).collect();
            corruptions.push(None);
            for corruption in corruptions {
                let options = ExpandOptions {
                    corruption: corruption.clone(),
                    ..asked(60)
                };
                let task = expand(&file, &tokenizer, &options)
                    .unwrap_or_else(|e| panic!("{name} {corruption:?}: {e}"));
                assert!(
                    task.pairs().len() >= 50,
                    "{name} {corruption:?}: {:?}",
                    task.drop_counts()
                );
                task.check_metric(task.metric).unwrap();
            }
        }
    }

    #[test]
    fn years_are_two_digits_or_one_as_the_tokenizer_has_them() {
        let file = TaskFile::open("greater_than").unwrap();
        for (digits, templates, answers) in [(r"\d", [2, 3], 10), (r"\d\d?", [0, 1], 100)] {
            let task = expand(&file, &tokenizer_for(&file, digits), &asked(20)).unwrap();
            for pair in task.pairs() {
                assert!(templates.contains(&pair.template));
                assert_eq!(pair.target.columns().len(), answers);
            }
            assert!(!task.dropped.is_empty());
        }
    }

    /// Looks for a real tokenizer in the folder that `CANDLEWICK_TOKENIZER` names.
    #[test]
    fn every_shipped_task_has_enough_pairs_under_a_real_tokenizer() {
        let Ok(folder) = std::env::var("CANDLEWICK_TOKENIZER") else {
            eprintln!("skipped: set CANDLEWICK_TOKENIZER to a folder with a tokenizer.json");
            return;
        };
        let tokenizer = Tokenizer::from_dir(std::path::Path::new(&folder)).unwrap();
        for name in shipped() {
            let file = TaskFile::open(name).unwrap();
            let task =
                expand(&file, &tokenizer, &asked(100)).unwrap_or_else(|e| panic!("{name}: {e}"));
            eprintln!("{}", crate::task::render(&task, 2));
            assert!(task.pairs().len() >= 50, "{name}: {:?}", task.drop_counts());
        }
        if tokenizer.has_chat_template() {
            let options = ExpandOptions {
                chat: true,
                ..asked(20)
            };
            let task = expand(&TaskFile::open("ioi").unwrap(), &tokenizer, &options).unwrap();
            eprintln!("{}", crate::task::render(&task, 1));
            assert!(task.roles().contains(&"S2".to_owned()));
        }
    }
}
