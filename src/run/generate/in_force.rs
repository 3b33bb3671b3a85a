//! Which part of an edit is in force in one pass of a generation, and what of an edit cannot be in force at all.
//!
//! A pass is the positions that are run at once: the prompt's, then one generated position after another. For each pass the
//! edits are written anew with absolute positions of that pass, so that the engine resolves and applies them as in any run.

use std::ops::Range;

use super::request::GenerateRequest;
use crate::error::{Error, Result};
use crate::hooks::{Axes, Edit, Op, Pos, Positions, Roles, Value};
use crate::model::ModelSpec;

/// The part of an edit that is in force in a pass over `pass`, with absolute positions and keys; `None` if no part is.
/// # Errors
/// Those of [`Positions::resolve`] in a prompt of `prompt_length` tokens.
pub(super) fn in_force(
    edit: &Edit,
    pass: &Range<usize>,
    prompt_length: usize,
    roles: &Roles,
) -> Result<Option<Edit>> {
    let positions: Vec<usize> = match absolute(&edit.site.positions, prompt_length, roles)? {
        None => pass.clone().collect(),
        Some(named) => named.into_iter().filter(|pos| pass.contains(pos)).collect(),
    };
    let keys = match absolute(&edit.site.keys, prompt_length, roles)? {
        None => Positions::All,
        // Later keys are not there yet, and a causal mask hides them in any case.
        Some(named) => indices(named.into_iter().filter(|&key| key < pass.end)),
    };
    let nothing = Positions::These(Vec::new());
    if positions.is_empty() || keys == nothing {
        return Ok(None);
    }
    let mut edit = edit.clone();
    edit.site.positions = indices(positions);
    edit.site.keys = keys;
    Ok(Some(edit))
}

fn indices(positions: impl IntoIterator<Item = usize>) -> Positions {
    Positions::These(positions.into_iter().map(Pos::Index).collect())
}

/// The positions named, ascending: those from the end and of roles in the prompt, absolute ones wherever they are. `None`: all.
fn absolute(
    positions: &Positions,
    prompt_length: usize,
    roles: &Roles,
) -> Result<Option<Vec<usize>>> {
    let Positions::These(list) = positions else {
        return Ok(None);
    };
    let is_index = |pos: &&Pos| matches!(pos, Pos::Index(_));
    let (given, of_prompt): (Vec<&Pos>, Vec<&Pos>) = list.iter().partition(is_index);
    let of_prompt = Positions::These(of_prompt.into_iter().cloned().collect());
    let mut found = of_prompt.resolve(prompt_length, roles)?;
    found.extend(given.into_iter().filter_map(|pos| match pos {
        Pos::Index(index) => Some(*index),
        Pos::FromEnd(_) | Pos::Role(_) => None,
    }));
    found.sort_unstable();
    found.dedup();
    Ok(Some(found))
}

/// Refuses, for one prompt, what could only fail once generation is under way. `reach` positions are run.
/// # Errors
/// Those of [`Edit::check`] and [`Positions::resolve`]; [`Error::OutOfRange`] for a position that generation never reaches;
/// [`Error::BadEdit`] for an edit without values for a position that it reaches.
pub(super) fn check_edits(
    spec: &ModelSpec,
    request: &GenerateRequest<'_>,
    prompt: usize,
    prompt_length: usize,
    reach: usize,
) -> Result<()> {
    for edit in request.edits {
        edit.check(spec)?;
        let roles = request.roles_of(prompt);
        let positions = absolute(&edit.site.positions, prompt_length, roles)?;
        let keys = absolute(&edit.site.keys, prompt_length, roles)?;
        for (what, named) in [("pos", &positions), ("key", &keys)] {
            let last = named.as_ref().map(|named| named.last().copied());
            match last {
                Some(None) => {
                    let reason = format!("its `{what}=` names no position of prompt {prompt}");
                    return Err(bad(edit, reason));
                }
                Some(Some(last)) if last >= reach => {
                    return Err(Error::OutOfRange {
                        hook: "the generation".into(),
                        what,
                        value: last.to_string(),
                        limit: format!(
                            "{reach} positions: {prompt_length} of the prompt, and each generated token's but the last"
                        ),
                    });
                }
                _ => {}
            }
        }
        let positions = positions.unwrap_or_else(|| (0..reach).collect());
        let last = positions.last().copied().unwrap_or(0);
        check_values(spec, edit, last, keys, prompt_length)?;
        check_source(request, edit, prompt, &positions, prompt_length)?;
    }
    Ok(())
}

/// Values given for each position or key must not have to grow with the generation.
fn check_values(
    spec: &ModelSpec,
    edit: &Edit,
    last: usize,
    keys: Option<Vec<usize>>,
    prompt_length: usize,
) -> Result<()> {
    let (each_position, each_key) = match &edit.op {
        Op::Replace(Value::Tensor(_)) | Op::Add(Value::Tensor(_)) => (true, true),
        Op::Replace(Value::Vector(_)) | Op::Add(Value::Vector(_)) => (false, true),
        Op::FromRun(_) | Op::Mean | Op::Freeze => (false, true),
        _ => (false, false),
    };
    if each_position && last >= prompt_length {
        let reason = "its tensor has a row for each position, and generation goes on beyond the prompt; name positions of the \
                      prompt (`pos=`), or give one vector for all";
        return Err(bad(edit, reason.into()));
    }
    if !each_key || edit.site.hook.kind.axes(spec) != Axes::Pattern {
        return Ok(());
    }
    let from_source = matches!(edit.op, Op::FromRun(_) | Op::Mean | Op::Freeze);
    let grows = match &keys {
        Some(keys) if !from_source => keys.last().is_some_and(|&key| key >= prompt_length),
        _ => last >= prompt_length,
    };
    if grows {
        let reason = "it has a value for each key, and generated tokens are keys too; name positions of the prompt (`pos=`), \
                          or give one number";
        Err(bad(edit, reason.into()))
    } else {
        Ok(())
    }
}

/// The source must have a value for each position that the edit reaches.
fn check_source(
    request: &GenerateRequest<'_>,
    edit: &Edit,
    prompt: usize,
    positions: &[usize],
    prompt_length: usize,
) -> Result<()> {
    let name = match &edit.op {
        Op::FromRun(name) => name,
        Op::Mean => "mean",
        Op::Freeze => "base",
        _ => return Ok(()),
    };
    let source = request.sources.get(name, edit)?;
    let (_, row_of) = source.lookup(edit.site.hook)?;
    let Some(missing) = (positions.iter()).find(|&&pos| row_of(prompt, pos).is_none()) else {
        return Ok(());
    };
    let reason = if *missing < prompt_length {
        format!(
            "`{name}` has no position {missing} of prompt {prompt}; take it from a run of as many prompts as long"
        )
    } else {
        format!(
            "`{name}` has no position {missing}, where a token will be generated; name positions of the prompt (`pos=`), or take \
             values that are the same for all positions"
        )
    };
    Err(bad(edit, reason))
}

fn bad(edit: &Edit, reason: String) -> Error {
    Error::BadEdit {
        edit: edit.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of an edit in a pass after a prompt of five tokens, in which `S` is token 1.
    fn left(text: &str, pass: Range<usize>) -> Option<String> {
        let roles = Roles::from([("S".to_string(), vec![1])]);
        let edit: Edit = text.parse().expect(text);
        let edit = in_force(&edit, &pass, 5, &roles).expect("in range");
        edit.map(|edit| edit.to_string())
    }

    #[test]
    fn an_edit_without_positions_is_in_force_everywhere() {
        let z = |pos: &str| Some(format!("blocks.0.attn.hook_z[pos={pos}] = zero"));
        assert_eq!(left("z0 = zero", 0..5), z("0,1,2,3,4"));
        assert_eq!(left("z0 = zero", 5..6), z("5"));
    }

    #[test]
    fn absolute_positions_wait_for_their_token_and_others_are_the_prompts() {
        let z = |pos: &str| Some(format!("blocks.0.attn.hook_z[pos={pos}] = zero"));
        assert_eq!(left("z0[pos=6,2] = zero", 0..5), z("2"));
        assert_eq!(left("z0[pos=6,2] = zero", 5..6), None);
        assert_eq!(left("z0[pos=6,2] = zero", 6..7), z("6"));
        assert_eq!(left("z0[pos=-1,@S] = zero", 0..5), z("1,4"));
        assert_eq!(left("z0[pos=-1,@S] = zero", 5..6), None);
    }

    #[test]
    fn keys_are_there_from_their_token_on() {
        let scores = |parts: &str| Some(format!("blocks.0.attn.hook_attn_scores[{parts}] = block"));
        let text = "attn_scores0[key=@S,6] = block";
        assert_eq!(left(text, 0..5), scores("pos=0,1,2,3,4; key=1"));
        assert_eq!(left(text, 6..7), scores("pos=6; key=1,6"));
        assert_eq!(left("attn_scores0[key=6] = block", 0..5), None);
    }
}
