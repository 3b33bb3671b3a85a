//! `candlewick hooks`: what can be hooked in a model, from its config alone.

use std::io::{self, BufWriter, Write};

use candlewick::Error;
use candlewick::hooks::{Axes, Hook, Kind, Ln};
use candlewick::model::{ModelSpec, read_spec};
use candlewick::text::{Align, aligned, visible};
use clap::Args;
use serde_json::json;

use super::args::ModelArgs;
use super::load_options;

/// List what can be hooked in a model: names, short forms, shapes and meanings, and which hooks it does not have and why.
///
/// No weights are read. b is batch, p position, q and k query and key positions; heads are those of the keys for k and v.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick hooks
  candlewick hooks --layer 2 --batch 8 --pos 20
  candlewick hooks --json")]
pub struct HooksArgs {
    /// Prompts in the shapes shown.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "pos")]
    pub batch: usize,
    /// Tokens of a prompt in the shapes shown [default: shapes have symbols].
    #[arg(long, value_name = "N")]
    pub pos: Option<usize>,
    /// Names of this layer, instead of `{l}`.
    #[arg(long, value_name = "L")]
    pub layer: Option<usize>,
    /// A JSON object a line.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

pub fn run(args: &HooksArgs) -> anyhow::Result<()> {
    let spec = read_spec(&args.model.model, &load_options(&args.model)?)?;
    if let Some(layer) = args.layer {
        Hook::at(Kind::ResidPre, layer).check(&spec)?;
    }
    if let Some(pos) = args.pos.filter(|&pos| pos > spec.n_ctx) {
        return Err(Error::OutOfRange {
            hook: "the model".into(),
            what: "pos",
            value: pos.to_string(),
            limit: format!("{} positions", spec.n_ctx),
        }
        .into());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        print_json(args, &spec, &mut out)?
    } else {
        print_table(args, &spec, &mut out)?
    }
    Ok(out.flush()?)
}

fn print_json(args: &HooksArgs, spec: &ModelSpec, out: &mut impl Write) -> io::Result<()> {
    for kind in Kind::ALL {
        let absent = absent(kind, args.layer, spec);
        let row = json!({
            "name": name(kind, args.layer),
            "short": kind.short(),
            "layers": kind.per_layer().then_some(spec.n_layers),
            "axes": absent.is_none().then(|| symbols(kind, spec)),
            "shape": absent.is_none().then(|| shape(kind, args, spec)).flatten(),
            "meaning": meaning(kind),
            "absent": absent,
        });
        writeln!(out, "{row}")?;
    }
    Ok(())
}

fn print_table(args: &HooksArgs, spec: &ModelSpec, out: &mut impl Write) -> io::Result<()> {
    let about = format!(
        "{}: family {}, {} layers, {} heads ({} for keys), d_model {}, d_head {}, d_mlp {}, {} tokens, {} positions",
        visible(&args.model.model),
        spec.family,
        spec.n_layers,
        spec.n_heads,
        spec.n_kv_heads,
        spec.d_model,
        spec.d_head,
        spec.d_mlp,
        spec.d_vocab,
        spec.n_ctx,
    );
    writeln!(out, "{about}\n")?;
    let (missing, present): (Vec<Kind>, Vec<Kind>) = Kind::ALL
        .into_iter()
        .partition(|kind| absent(*kind, args.layer, spec).is_some());
    let mut rows = vec![["name", "short", "shape", "meaning"].map(String::from)];
    rows.extend(present.into_iter().map(|kind| {
        let shape = match shape(kind, args, spec) {
            Some(shape) => format!("{shape:?}"),
            None => format!("[{}]", symbols(kind, spec).join(", ")),
        };
        [
            name(kind, args.layer),
            kind.short(),
            shape,
            meaning(kind).to_string(),
        ]
    }));
    write!(out, "{}", aligned(&rows, &[Align::Left]))?;
    if missing.is_empty() {
        return Ok(());
    }
    let reasons = missing.into_iter().map(|kind| {
        let reason = absent(kind, args.layer, spec).unwrap_or_default();
        [name(kind, args.layer), reason.to_string()]
    });
    let reasons: Vec<[String; 2]> = reasons.collect();
    write!(
        out,
        "\nnot in this model:\n{}",
        aligned(&reasons, &[Align::Left])
    )
}

/// Why the layer asked for has no such hook, or no layer has.
fn absent(kind: Kind, layer: Option<usize>, spec: &ModelSpec) -> Option<&'static str> {
    match layer {
        Some(layer) => Hook::at(kind, layer).absent(spec),
        None => kind.absent(spec),
    }
}

fn name(kind: Kind, layer: Option<usize>) -> String {
    match (kind.per_layer(), layer) {
        (false, _) => kind.name().to_string(),
        (true, Some(layer)) => Hook::at(kind, layer).to_string(),
        (true, None) => format!("blocks.{{l}}.{}", kind.name()),
    }
}

/// The shape for the prompts asked for; `None` if their length was left open.
fn shape(kind: Kind, args: &HooksArgs, spec: &ModelSpec) -> Option<Vec<usize>> {
    let pos = args.pos?;
    Some(Hook::at(kind, 0).shape(spec, args.batch, pos))
}

/// The axes, with the sizes that do not depend on the prompts.
fn symbols(kind: Kind, spec: &ModelSpec) -> Vec<String> {
    let sizes = |sizes: &[usize]| -> Vec<String> {
        let prompt = ["b", "p"].map(String::from).into_iter();
        prompt.chain(sizes.iter().map(usize::to_string)).collect()
    };
    match kind.axes(spec) {
        Axes::Stream => sizes(&[spec.d_model]),
        Axes::Scale => sizes(&[1]),
        Axes::Heads { heads, width } => sizes(&[heads, width]),
        Axes::Pattern => vec!["b".into(), spec.n_heads.to_string(), "q".into(), "k".into()],
        Axes::Neurons => sizes(&[spec.d_mlp]),
    }
}

fn meaning(kind: Kind) -> &'static str {
    match kind {
        Kind::Embed => "token embedding, after any multiplier",
        Kind::PosEmbed => "position embedding",
        Kind::ResidPre => "stream into the block",
        Kind::ResidMid => "stream after attention, before the MLP",
        Kind::ResidPost => "stream out of the block",
        Kind::AttnOut => "what attention adds to the stream",
        Kind::MlpOut => "what the MLP adds to the stream",
        Kind::Scale(Ln::One) => "divisor of the norm before attention",
        Kind::Scale(Ln::OnePost) => "divisor of the norm on the attention output",
        Kind::Scale(Ln::Two) => "divisor of the norm before the MLP",
        Kind::Scale(Ln::TwoPost) => "divisor of the norm on the MLP output",
        Kind::Scale(Ln::Final) => "divisor of the final norm",
        Kind::Normalized(_) => "that norm's input over its divisor, before its weight",
        Kind::QInput => "stream that each query head reads, before ln1",
        Kind::KInput => "stream that each query head's key reads, before ln1",
        Kind::VInput => "stream that each query head's value reads, before ln1",
        Kind::MlpIn => "stream that the MLP reads, before ln2",
        Kind::Q => "queries, before any q-norm and rotation",
        Kind::K => "keys, before any k-norm and rotation",
        Kind::V => "values",
        Kind::RotQ => "queries as they meet the keys",
        Kind::RotK => "keys as they meet the queries",
        Kind::AttnScores => "query times key: scaled, capped, masked",
        Kind::Pattern => "softmax of the scores over keys",
        Kind::Z => "values mixed by the pattern, before W_O",
        Kind::Result => "what each head adds, without b_O; computed only when asked for",
        Kind::MlpPre => "neurons before the activation; gated: the gate branch",
        Kind::MlpPreLinear => "neurons of the linear branch",
        Kind::MlpPost => "neurons after the activation; gated: times the linear branch",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_and_numbers_are_the_same_shape() {
        let options = candlewick::model::LoadOptions::default();
        let spec = read_spec(candlewick::model::EMBEDDED, &options).unwrap();
        for kind in Kind::ALL {
            let numbers = Hook::at(kind, 0).shape(&spec, 91, 92);
            let symbols = symbols(kind, &spec);
            assert_eq!(numbers.len(), symbols.len());
            for (number, symbol) in numbers.iter().zip(&symbols) {
                let expected = match symbol.as_str() {
                    "b" => 91,
                    "p" | "q" | "k" => 92,
                    size => size.parse().unwrap(),
                };
                assert_eq!(*number, expected, "{kind:?}");
            }
        }
    }
}
