//! Scores of sentences against runs written out, on models of every kind; questions that are none.

use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind};
use candlewick::methods::context::{ContextConfig, ContextMethod, KlOrder, Steer};
use candlewick::methods::{Running, Subject, Watch, check, measurements};
use candlewick::model::Model;
use candlewick::nn::{embed, norm};
use candlewick::run::{
    Cache, GenerateRequest, Logits, Quiet, Request, generate, run, run_with_cache,
};
use candlewick::scores::Measured;
use candlewick::task::questions::sentences;
use candlewick::task::{ExpandOptions, Question, QuestionSet, Task};

use crate::models::task::tokenizer;
use crate::models::{encoder, every_kind};

/// Words that the tiny models have ids for; the answer of the first question is of two tokens.
fn set() -> QuestionSet {
    let question = |context: &[&str], question: &str, answer: &str, gold| Question {
        context: context.iter().map(|text| text.to_string()).collect(),
        question: question.into(),
        answer: Some(answer.into()),
        gold: Some(gold),
    };
    QuestionSet {
        layout: Some("{context} {question}".into()),
        ..QuestionSet::new(
            "tiny",
            [
                question(
                    &["Mary , John .", "Alice Peter .", "Susan ."],
                    "Emma ,",
                    "Mary John",
                    0,
                ),
                question(&["Grace .", "Frank , Henry ."], "David ,", "Henry", 1),
            ],
        )
    }
}

fn task(set: &QuestionSet) -> Task {
    let task = set.task(tokenizer(), &ExpandOptions::default());
    task.expect("questions of known words")
}

/// Those that leave sentences out.
fn config(set: &QuestionSet) -> ContextConfig {
    let methods = [ContextMethod::ArcJsd, ContextMethod::LeaveOneOut];
    ContextConfig::new(set.clone(), methods)
}

fn decoders() -> Vec<Model> {
    let mut all = every_kind();
    all.retain(|model| model.spec.encoder.is_none());
    all
}

/// The prompt of a question with its answer, all of it, and where its sentences are.
fn answered(set: &QuestionSet, question: usize) -> (Vec<u32>, Vec<Vec<usize>>, usize) {
    let asked = &set.questions[question];
    let all = vec![true; asked.context.len()];
    let prompt = set.prompt(question, &all, tokenizer(), false, true);
    let prompt = prompt.expect("known words").expect("it is a prompt");
    let answer = prompt.answer(asked.answer.as_deref().unwrap(), tokenizer(), false, true);
    let answer = answer.expect("known words").expect("it is an answer");
    (
        [prompt.ids, answer.clone()].concat(),
        prompt.sentences,
        answer.len(),
    )
}

fn measure(model: &Model, config: &ContextConfig) -> Measured {
    let task = task(&config.questions);
    let on = Subject { model, task: &task };
    measurements(on, config, &Running::default(), &Watch::default())
        .unwrap_or_else(|error| panic!("{}: {error}", model.spec.family))
}

/// The scores of a question's sentences by a method.
fn scores(measured: &Measured, example: usize, component: &str, measure: Option<&str>) -> Vec<f64> {
    let one = &measured.examples[example];
    let cells = one.cells.iter().zip(&one.values);
    cells
        .filter(|(cell, _)| {
            let cell = &measured.cells[**cell as usize];
            cell.component == component && cell.measure.as_deref() == measure
        })
        .map(|(_, value)| *value)
        .collect()
}

/// Log probabilities of each token of an answer behind a text, in one whole run: `[answer][vocabulary]`.
fn log_probs(model: &Model, text: &str, answer: &[u32]) -> Vec<Vec<f64>> {
    let mut prompt = tokenizer().encode(text, true).expect("known words").ids;
    let start = prompt.len() - 1;
    prompt.extend(&answer[..answer.len() - 1]);
    let request = Request {
        logits: Logits::All,
        ..Request::default()
    };
    let logits = run(model, &[prompt], &request).expect("it runs").logits;
    let logits: Vec<Vec<f32>> = logits
        .expect("asked for")
        .get(0)
        .unwrap()
        .to_vec2()
        .unwrap();
    let row = |logits: &Vec<f32>| {
        let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        logits.iter().map(|&l| f64::from(l) - total).collect()
    };
    logits[start..].iter().map(row).collect()
}

/// `KL(p || q)` in the order asked for, of the mean and both.
fn divergence(p: &[f64], q: &[f64], order: KlOrder) -> f64 {
    let kl = |p: f64, q: f64| p * (p / q).ln();
    let each = p.iter().zip(q).map(|(p, q)| (p.exp(), q.exp()));
    each.map(|(p, q)| {
        let m = (p + q) / 2.0;
        match order {
            KlOrder::Bounded => (kl(p, m) + kl(q, m)) / 2.0,
            KlOrder::Released => (kl(m, p) + kl(m, q)) / 2.0,
        }
    })
    .sum()
}

#[test]
fn a_sentence_counts_by_whole_runs_of_the_prompt_without_it() {
    let set = set();
    for model in decoders() {
        let family = &model.spec.family;
        for order in [KlOrder::Bounded, KlOrder::Released] {
            let config = ContextConfig {
                kl_order: order,
                ..config(&set)
            };
            let measured = measure(&model, &config);
            for (example, question) in set.questions.iter().enumerate() {
                let answer = question.answer.as_deref().unwrap();
                let answer = tokenizer().encode(answer, false).unwrap().ids;
                let text = |left_out: Option<usize>| {
                    let there = question.context.iter().enumerate();
                    let there = there.filter(|(at, _)| Some(*at) != left_out);
                    let there: Vec<&str> = there.map(|(_, text)| text.as_str()).collect();
                    format!("{} {}", there.join(" "), question.question)
                };
                let whole = log_probs(&model, &text(None), &answer);
                let of_answer = |rows: &[Vec<f64>]| -> f64 {
                    rows.iter()
                        .zip(&answer)
                        .map(|(row, &id)| row[id as usize])
                        .sum()
                };
                let jsd = scores(&measured, example, "arc-jsd", None);
                let drop = scores(&measured, example, "leave-one-out", Some("log_prob_drop"));
                assert_eq!((jsd.len(), drop.len()), (question.context.len(), jsd.len()));
                for at in 0..jsd.len() {
                    let less = log_probs(&model, &text(Some(at)), &answer);
                    let rows = whole.iter().zip(&less);
                    let expected: f64 = rows.map(|(p, q)| divergence(p, q, order)).sum();
                    let what = format!("{family} question {example} sentence {at}");
                    assert!(
                        (jsd[at] - expected).abs() < 1e-5,
                        "{what}: {} {expected}",
                        jsd[at]
                    );
                    let expected = of_answer(&whole) - of_answer(&less);
                    assert!(
                        (drop[at] - expected).abs() < 1e-4,
                        "{what}: {} {expected}",
                        drop[at]
                    );
                    if order == KlOrder::Bounded {
                        let most = answer.len() as f64 * std::f64::consts::LN_2;
                        assert!((0.0..=most).contains(&jsd[at]), "{what}: {}", jsd[at]);
                    }
                }
            }
        }
        // The released order is another number on any question that moves at all.
        let [bounded, released] = [KlOrder::Bounded, KlOrder::Released].map(|kl_order| {
            let of = ContextConfig {
                kl_order,
                ..config(&set)
            };
            scores(&measure(&model, &of), 0, "arc-jsd", None)
        });
        let differs = |(a, b): (&f64, &f64)| *a > 1e-9 && (a - b).abs() > 1e-6 * a;
        let moved = bounded.iter().any(|a| *a > 1e-4);
        assert!(
            !moved || bounded.iter().zip(&released).any(differs),
            "{family}"
        );
    }
}

#[test]
fn the_judging_is_of_the_best_sentence() {
    let set = set();
    let model = &every_kind()[0];
    let measured = measure(model, &config(&set));
    for (example, question) in set.questions.iter().enumerate() {
        for (component, own) in [("arc-jsd", None), ("leave-one-out", Some("log_prob_drop"))] {
            let found = scores(&measured, example, component, own);
            let best = (0..found.len()).max_by(|&a, &b| found[a].total_cmp(&found[b]));
            let top1 = scores(&measured, example, component, Some("top1"));
            assert_eq!(top1, [f64::from(u8::from(best == question.gold))]);
        }
        let chance = scores(&measured, example, "random", Some("top1"));
        assert_eq!(chance, [1.0 / question.context.len() as f64]);
        let jsd = scores(&measured, example, "arc-jsd", None);
        let per_token = scores(&measured, example, "arc-jsd", Some("jsd_per_token"));
        let tokens = [2.0, 1.0][example];
        assert!(
            jsd.iter()
                .zip(&per_token)
                .all(|(j, p)| (j / tokens - p).abs() < 1e-12)
        );
    }
}

#[test]
fn an_answer_that_is_not_given_is_the_models_own() {
    let mut set = set();
    set.questions.truncate(1);
    set.questions[0].answer = None;
    set.max_answer = 3;
    let model = &every_kind()[0];
    let measured = measure(model, &config(&set));
    let answers = measured.found["answers"].as_array().unwrap().clone();
    assert_eq!(answers[0]["given"], false);
    // The same answer, given, has the same scores.
    set.questions[0].answer = Some(answers[0]["text"].as_str().unwrap().into());
    let given = measure(model, &config(&set));
    for (component, own) in [("arc-jsd", None), ("leave-one-out", Some("log_prob_drop"))] {
        let [a, b] = [&measured, &given].map(|it| scores(it, 0, component, own));
        assert!(
            a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5),
            "{a:?} {b:?}"
        );
    }
    assert!(
        measured.notes[0].contains("the model's own"),
        "{:?}",
        measured.notes
    );
}

#[test]
fn a_question_that_the_model_does_not_answer_is_left_out_and_said() {
    let mut set = set();
    set.questions.iter_mut().for_each(|one| one.answer = None);
    let first = |model: &Model, question: usize| -> u32 {
        let all = vec![true; set.questions[question].context.len()];
        let prompt = set.prompt(question, &all, tokenizer(), false, true);
        let prompt = prompt.expect("known words").expect("it is a prompt");
        let request = GenerateRequest {
            max_tokens: 1,
            ..GenerateRequest::default()
        };
        let made = generate(model, &[prompt.ids], &request, &Quiet).unwrap();
        made.tokens[0][0]
    };
    let models = decoders();
    let mut apart = models
        .iter()
        .map(|model| (model, [first(model, 0), first(model, 1)]));
    let (model, [end, other]) = apart
        .find(|(_, [a, b])| a != b)
        .expect("a model that answers two questions differently");
    let measured = |ends: &[u32]| {
        let tokenizer = tokenizer().clone().with_ends(ends.to_vec());
        let task = set.task(&tokenizer, &ExpandOptions::default()).unwrap();
        let on = Subject { model, task: &task };
        measurements(on, &config(&set), &Running::default(), &Watch::default())
    };
    let found = measured(&[end]).unwrap();
    assert_eq!(found.examples.len(), 1);
    assert_eq!(found.examples[0].example, 1);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("left out: question 0,")),
        "{:?}",
        found.notes
    );
    let error = measured(&[end, other]).unwrap_err().to_string();
    assert!(
        error.contains("no answer to any of the questions"),
        "{error}"
    );
}

/// `[first][second][third]` of a tensor of a run of one prompt.
fn cube(cache: &Cache, hook: Hook) -> Vec<Vec<Vec<f32>>> {
    cache
        .get(hook)
        .unwrap()
        .squeeze(0)
        .unwrap()
        .to_vec3()
        .unwrap()
}

#[test]
fn what_is_looked_at_is_what_patterns_and_states_say() {
    let set = set();
    let methods = [
        ContextMethod::Attention,
        ContextMethod::Cosine,
        ContextMethod::AttnAttrib,
    ];
    for model in decoders() {
        let spec = &model.spec;
        let (layer, head) = (spec.n_layers - 1, 1);
        let config = ContextConfig {
            head: Some((layer, head)),
            layer: Some(1),
            ..ContextConfig::new(set.clone(), methods)
        };
        let measured = measure(&model, &config);
        for example in 0..set.questions.len() {
            let (tokens, sentences, m) = answered(&set, example);
            let patterns = (0..spec.n_layers).map(|l| Hook::at(Kind::Pattern, l));
            let hooks: Vec<Hook> = patterns.chain([Hook::at(Kind::ResidPost, 1)]).collect();
            let prompts = [tokens.clone()];
            let (_, cache) = run_with_cache(&model, &prompts, &hooks).unwrap();
            let states: Vec<Vec<f32>> = cache
                .get(Hook::at(Kind::ResidPost, 1))
                .unwrap()
                .get(0)
                .unwrap()
                .to_vec2()
                .unwrap();
            let queries = tokens.len() - m - 1..tokens.len() - 1;
            let found = |component: &str, measure| scores(&measured, example, component, measure);
            let mean = found("attention", None);
            let highest = found("attn-attrib", Some("highest_attention"));
            let cosine = found("cosine", Some("cosine"));
            for (at, keys) in sentences.iter().enumerate() {
                let (mut sum, mut n, mut most) = (0.0, 0, 0.0f64);
                for l in 0..spec.n_layers {
                    let pattern = cube(&cache, Hook::at(Kind::Pattern, l));
                    for (h, pattern) in pattern.iter().enumerate() {
                        for (q, &k) in queries
                            .clone()
                            .flat_map(|q| keys.iter().map(move |k| (q, k)))
                        {
                            let weight = f64::from(pattern[q][k]);
                            sum += weight;
                            n += 1;
                            if (l, h) == (layer, head) {
                                most = most.max(weight);
                            }
                        }
                    }
                }
                let what = format!("{} question {example} sentence {at}", spec.family);
                assert!((mean[at] - sum / f64::from(n)).abs() < 1e-6, "{what}");
                assert!((highest[at] - most).abs() < 1e-6, "{what}");
                let state = |places: &mut dyn Iterator<Item = usize>| {
                    let mut sum = vec![0.0; spec.d_model];
                    for place in places {
                        (sum.iter_mut().zip(&states[place])).for_each(|(s, &x)| *s += f64::from(x));
                    }
                    sum
                };
                let a = state(&mut (tokens.len() - m..tokens.len()));
                let b = state(&mut keys.iter().copied());
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let expected = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
                assert!((cosine[at] - expected).abs() < 1e-5, "{what}");
            }
        }
    }
}

#[test]
fn a_fit_to_all_choices_of_two_sentences_is_what_each_adds_less_the_price() {
    let set = set();
    for model in decoders() {
        let config = ContextConfig::new(set.clone(), [ContextMethod::SparseFit]);
        let measured = measure(&model, &config);
        let question = &set.questions[1];
        let answer = tokenizer()
            .encode(question.answer.as_deref().unwrap(), false)
            .unwrap()
            .ids;
        let odds = |bits: usize| {
            let there = (0..2).filter(|at| bits >> at & 1 == 1);
            let there: Vec<&str> = there.map(|at| question.context[at].as_str()).collect();
            let text = format!("{} {}", there.join(" "), question.question);
            let p = log_probs(&model, text.trim(), &answer)[0][answer[0] as usize].exp();
            (p / (1.0 - p)).ln()
        };
        let y: Vec<f64> = (0..4).map(odds).collect();
        let mean = y.iter().sum::<f64>() / 4.0;
        let spread = (y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / 4.0).sqrt();
        let found = scores(&measured, 1, "sparse-fit", None);
        for (at, adds) in [
            (0, y[1] + y[3] - y[0] - y[2]),
            (1, y[2] + y[3] - y[0] - y[1]),
        ] {
            let adds = adds / 2.0;
            let expected = adds.signum() * (adds.abs() - 0.02 * spread).max(0.0);
            let what = format!("{}: {} {expected}", model.spec.family, found[at]);
            assert!(
                (found[at] - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                "{what}"
            );
        }
    }
}

#[test]
fn a_head_is_found_on_the_other_question() {
    let set = set();
    for model in decoders() {
        let measured = measure(
            &model,
            &ContextConfig::new(set.clone(), [ContextMethod::AttnAttrib]),
        );
        for example in 0..2 {
            let other = 1 - example;
            let of =
                |example, measure| scores(&measured, example, "attn.hook_pattern", Some(measure));
            let (hits, entropies) = (of(other, "head_top1"), of(other, "head_entropy"));
            assert_eq!(hits.len(), model.spec.n_layers * model.spec.n_heads);
            let best = (0..hits.len())
                .max_by(|&a, &b| {
                    let ties = hits[a].total_cmp(&hits[b]);
                    ties.then(entropies[b].total_cmp(&entropies[a]))
                })
                .unwrap();
            let n = set.questions[example].context.len();
            let looks = of(example, "head_highest_attention");
            let found = scores(&measured, example, "attn-attrib", None);
            assert_eq!(found, looks[best * n..][..n], "{}", model.spec.family);
            let hit = of(example, "head_top1")[best];
            assert_eq!(
                scores(&measured, example, "attn-attrib", Some("top1")),
                [hit]
            );
            let all = of(example, "head_top1");
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let any = scores(&measured, example, "random head", Some("top1"));
            assert!((any[0] - mean).abs() < 1e-12);
        }
    }
}

#[test]
fn the_lens_is_each_parts_own_output_read_out_with_and_without() {
    let set = set();
    for model in decoders() {
        let config = ContextConfig {
            lens: true,
            ..config(&set)
        };
        let (spec, weights) = (&model.spec, &model.weights);
        let measured = measure(&model, &config);
        let jsd = scores(&measured, 1, "arc-jsd", None);
        // Of two sentences the best one's control is the other.
        let best = usize::from(jsd[1] > jsd[0]);
        let question = &set.questions[1];
        let tokens = |left_out: Option<usize>| {
            let there: Vec<bool> = (0..2).map(|at| Some(at) != left_out).collect();
            set.prompt(1, &there, tokenizer(), false, true)
                .unwrap()
                .unwrap()
                .ids
        };
        assert_eq!(
            tokenizer()
                .encode(question.answer.as_deref().unwrap(), false)
                .unwrap()
                .ids
                .len(),
            1
        );
        let layer = spec.n_layers - 1;
        let hooks = [Hook::at(Kind::Result, layer)];
        let read = |tokens: Vec<u32>, head: usize| -> Vec<f64> {
            let (_, cache) = run_with_cache(&model, &[tokens], &hooks).unwrap();
            let out = cache.get(hooks[0]).unwrap().squeeze(0).unwrap(); // [pos, n_heads, d_model]
            let last = out.dim(0).unwrap() - 1;
            let u = out
                .get(last)
                .unwrap()
                .narrow(0, head, 1)
                .unwrap()
                .contiguous()
                .unwrap();
            let u = match &weights.ln_final {
                Some(w) => norm::forward(&u, w, spec.norm, spec.norm_eps).unwrap(),
                None => u,
            };
            let logits: Vec<f32> = embed::unembed(spec, weights, &u)
                .unwrap()
                .get(0)
                .unwrap()
                .to_vec1()
                .unwrap();
            let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            logits.iter().map(|&l| f64::from(l) - total).collect()
        };
        for (measure, left_out) in [("lens_jsd", best), ("lens_jsd_control", 1 - best)] {
            let found = scores(&measured, 1, "attn.hook_z", Some(measure));
            assert_eq!(found.len(), spec.n_layers * spec.n_heads);
            let all = [
                found.clone(),
                scores(&measured, 1, "hook_mlp_out", Some(measure)),
            ]
            .concat();
            assert!(
                all.iter()
                    .all(|j| (0.0..=std::f64::consts::LN_2).contains(j)),
                "{all:?}"
            );
            // With a norm on attention's output its scale has a say, which the plain form here has not.
            if weights.blocks[layer].ln1_post.is_none() {
                for head in 0..spec.n_heads {
                    let (p, q) = (read(tokens(None), head), read(tokens(Some(left_out)), head));
                    let expected = divergence(&p, &q, KlOrder::Bounded);
                    let own = found[layer * spec.n_heads + head];
                    assert!(
                        (own - expected).abs() < 1e-5,
                        "{}: {own} {expected}",
                        spec.family
                    );
                }
            }
        }
    }
}

#[test]
fn questions_that_are_none_are_refused_in_one_line() {
    let refused = |change: &dyn Fn(&mut QuestionSet), says: &str| {
        let mut set = set();
        change(&mut set);
        let error = set.task(tokenizer(), &ExpandOptions::default());
        let message = error.expect_err(says).to_string();
        assert!(
            message.contains(says) && !message.contains('\n'),
            "{says}: {message}"
        );
    };
    let first = |change: fn(&mut Question)| {
        move |set: &mut QuestionSet| {
            set.questions.truncate(1);
            change(&mut set.questions[0]);
        }
    };
    refused(&first(|q| q.context.clear()), "context is empty");
    refused(&first(|q| q.context.truncate(1)), "one sentence");
    refused(
        &first(|q| q.context[1] = " ".into()),
        "sentence 1 of its context is empty",
    );
    refused(&first(|q| q.question = "\n".into()), "asks nothing");
    refused(
        &first(|q| q.answer = Some(" ".into())),
        "its answer is empty",
    );
    refused(&first(|q| q.gold = Some(3)), "numbered from 0");
    refused(
        &first(|q| q.answer = Some("Zanzibar".into())),
        "unknown word",
    );
    refused(
        &first(|q| q.context[0] = "Mary <bos> .".into()),
        "special token in the context",
    );
    refused(
        &first(|q| q.context[0] = "\u{1b}[2J".into()),
        "unknown word",
    );
    refused(&|set| set.questions[1].answer = None, "question 1 has none");
    let mut own = set();
    own.questions[1].answer = None;
    own.own_answers = true;
    own.task(tokenizer(), &ExpandOptions::default())
        .expect("the model answers all of them");
    own.max_answer = 100_000_000;
    let options = ExpandOptions {
        max_tokens: Some(64),
        ..ExpandOptions::default()
    };
    let error = own.task(tokenizer(), &options).expect_err("too long");
    assert!(
        error.to_string().contains("`QuestionSet::max_answer`"),
        "{error}"
    );
    refused(&|set| set.questions.clear(), "no question in it");
    refused(
        &|set| set.layout = Some("{question}".into()),
        "0 places `{context}`",
    );
    refused(
        &|set| set.layout = Some("{context}{context} {question}".into()),
        "2 places",
    );
    refused(&|set| set.max_answer = 0, "at least one token");
    let short = ExpandOptions {
        max_tokens: Some(8),
        ..ExpandOptions::default()
    };
    let error = set().task(tokenizer(), &short).expect_err("too long");
    assert!(error.to_string().contains("too long: "), "{error}");
    assert!(matches!(error, Error::EmptyTask { .. }));

    let set = set();
    let task = task(&set);
    let model = &every_kind()[0];
    let refuse = |model: &Model, config: &ContextConfig, says: &str| {
        let error = check(config, &model.spec, &task).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    };
    refuse(&encoder(), &config(&set), "without some sentences");
    let of = |methods: &[ContextMethod]| ContextConfig::new(set.clone(), methods);
    refuse(model, &of(&[]), "nothing to score");
    refuse(
        model,
        &of(&[ContextMethod::ArcJsd, ContextMethod::ArcJsd]),
        "twice",
    );
    let released = ContextConfig {
        kl_order: KlOrder::Released,
        ..of(&[ContextMethod::LeaveOneOut])
    };
    refuse(model, &released, "not asked for");
    let one = ContextConfig {
        head: Some((0, 0)),
        ..of(&[ContextMethod::ArcJsd])
    };
    refuse(model, &one, "not asked for");
    let lens = ContextConfig {
        lens: true,
        ..of(&[ContextMethod::Attention])
    };
    refuse(model, &lens, "not asked for");
    let few = ContextConfig {
        draws: 3,
        ..of(&[ContextMethod::SparseFit])
    };
    refuse(model, &few, "4 to 10000 draws");
    let none = ContextConfig {
        head: Some((9, 0)),
        ..of(&[ContextMethod::AttnAttrib])
    };
    refuse(model, &none, "layer");
    let mut unknown = set.clone();
    unknown.questions.iter_mut().for_each(|one| one.gold = None);
    let search = ContextConfig::new(unknown, [ContextMethod::AttnAttrib]);
    refuse(model, &search, "there are none");
    let steered = ContextConfig {
        steer: Some(Steer::Hint),
        ..of(&[ContextMethod::ArcJsd])
    };
    refuse(model, &steered, "the model's own");
    let mut other = set.clone();
    other.questions.reverse();
    refuse(model, &config(&other), "is not question 0");
}

#[test]
fn files_of_questions_say_the_same_in_every_format() {
    let parse = |name: &str, text: &str| QuestionSet::parse(std::path::Path::new(name), text);
    let toml = "[[questions]]\ncontext = [\"A b.\", \"C d.\"]\nquestion = \"e\"\nanswer = \"f\"\ngold = 1\n";
    let json =
        r#"{"questions": [{"context": "A b. C d.", "question": "e", "answer": "f", "gold": 1}]}"#;
    let csv = "context,question,answer,gold,note\nA b. C d.,e,f,1,x\n";
    let lines = "context,question,answer,gold\n\"A b.\nC d.\",e,f,1\n";
    let questions = parse("x.toml", toml).unwrap().questions;
    assert_eq!(questions[0].context, ["A b.", "C d."]);
    for (name, text) in [("x.json", json), ("x.csv", csv), ("x.csv", lines)] {
        assert_eq!(parse(name, text).unwrap().questions, questions, "{text}");
    }
    let none = parse("x.csv", "context,question\nA b. C d.,e\n").unwrap();
    assert_eq!(
        (&none.questions[0].answer, none.questions[0].gold),
        (&None, None)
    );
    for (name, text, says) in [
        ("x.toml", "questions = 3", "TOML"),
        (
            "x.toml",
            "[[questions]]\nquestion = \"e\"\ncontexts = []\n",
            "contexts",
        ),
        (
            "x.json",
            "{\"questions\": [{\"context\": 1, \"question\": \"e\"}]}",
            "list of sentences",
        ),
        ("x.csv", "context\nA b. C d.\n", "question"),
        ("x.csv", "context,question,gold\nA b. C d.,e,first\n", "CSV"),
        (
            "x.csv",
            "context,question,golds\nA b. C d.,e,1\n",
            "did you mean `gold`",
        ),
        ("x.txt", "", ".toml, .json or .csv"),
    ] {
        let message = parse(name, text).unwrap_err().to_string();
        assert!(
            message.contains(says) && !message.contains('\n'),
            "{message}"
        );
    }
    assert!(matches!(
        QuestionSet::open("embeded"),
        Err(Error::Missing { .. })
    ));
    assert_eq!(
        sentences("One is here. Two\nis there!\n\nThree"),
        ["One is here.", "Two is there!", "Three"]
    );
}

#[test]
fn a_steered_answer_is_what_the_model_says_behind_the_hint_or_with_the_head_scaled() {
    let mut set = set();
    set.own_answers = true;
    set.max_answer = 3;
    let (mut changed, mut wrong) = (0, 0);
    for model in decoders() {
        let said = |text: &str, edits: &[Edit]| {
            let prompt = tokenizer().encode(text, true).unwrap().ids;
            let request = GenerateRequest {
                max_tokens: 3,
                edits,
                ..GenerateRequest::default()
            };
            let made = generate(&model, &[prompt], &request, &Quiet).unwrap();
            let said = &made.tokens[0];
            let end = said.iter().position(|&id| tokenizer().is_special(id));
            tokenizer()
                .decode(&said[..end.unwrap_or(said.len())])
                .unwrap()
        };
        // Of two sentences the other one is known; what is expected is the beginning of what the model says by itself.
        let question = &set.questions[1];
        let [a, b] = [&question.context[0], &question.context[1]];
        let plain = format!("{a} {b} {}", question.question);
        let own = said(&plain, &[]);
        let first = own.split(' ').next().unwrap().to_lowercase();
        let mut set = set.clone();
        set.questions[1].answer = Some(first.to_uppercase());
        set.questions[0].answer = Some("?".into());
        for (steer, head) in [(Steer::Hint, None), (Steer::Scale(-3.0), Some((1, 0)))] {
            let config = ContextConfig {
                steer: Some(steer),
                head,
                ..ContextConfig::new(
                    set.clone(),
                    [ContextMethod::LeaveOneOut, ContextMethod::AttnAttrib],
                )
            };
            let measured = measure(&model, &config);
            let drop = scores(&measured, 1, "leave-one-out", None);
            let best = usize::from(drop[1] > drop[0]);
            let found = |component: &str, measure| scores(&measured, 1, component, Some(measure));
            assert_eq!(found("unsteered", "answer_right"), [1.0], "{own}");
            // A wrong answer says nothing of where the right one stands.
            for example in [0, 1] {
                let is_right = scores(&measured, example, "unsteered", Some("answer_right"));
                let judged = scores(&measured, example, "leave-one-out", Some("top1"));
                assert_eq!(judged.is_empty(), is_right == [0.0], "{example}");
            }
            let hint = |at: usize| {
                said(
                    &format!("{a} {b} {} {}", [a, b][at], question.question),
                    &[],
                )
            };
            let (led, elsewhere) = match steer {
                Steer::Hint => (Some(hint(best)), Some(hint(1 - best))),
                Steer::Scale(_) => {
                    let edit: Edit = "z1[head=0]*=-3".parse().unwrap();
                    (Some(said(&plain, &[edit])), None)
                }
            };
            for (component, answer) in [("steered", led), ("control", elsewhere)] {
                let Some(answer) = answer else { continue };
                let share = |it: bool| f64::from(u8::from(it));
                let words = |text: &str| -> Vec<String> {
                    let text = text.to_lowercase();
                    let words = text.split(|c: char| !c.is_alphanumeric());
                    words
                        .filter(|word| !word.is_empty())
                        .map(String::from)
                        .collect()
                };
                let is_right = match &words(&first)[..] {
                    [] => answer.contains(&first),
                    some => words(&answer).windows(some.len()).any(|here| here == some),
                };
                assert_eq!(
                    found(component, "answer_right"),
                    [share(is_right)],
                    "{answer}"
                );
                assert_eq!(found(component, "answer_changed"), [share(answer != own)]);
                changed += usize::from(answer != own);
                wrong += usize::from(!is_right);
            }
        }
    }
    assert!(changed > 0 && wrong > 0);
}
