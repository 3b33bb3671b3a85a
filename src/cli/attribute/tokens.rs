//! `candlewick attribute` of tokens: a method with its settings, or the scores of methods.

use candlewick::Error;
use candlewick::methods::ScoreConfig;
use candlewick::methods::tokens::{NoiseTunnel, ReferenceSet, TokenConfig, TokenMethod};
use candlewick::model::ModelSpec;

use super::AttributeArgs;
use super::choices::{MethodChoice, Scored};

impl AttributeArgs {
    pub(super) fn tokens(&self) -> anyhow::Result<TokenConfig> {
        let method = self.token_method(self.chosen().name().parse()?)?;
        let tunnel = self.tunnel.map(|over| {
            let default = NoiseTunnel::new(over);
            NoiseTunnel {
                draws: self.tunnel_draws.unwrap_or(default.draws),
                noise: self.noise.unwrap_or(default.noise),
                ..default
            }
        });
        Ok(TokenConfig {
            tunnel,
            ..TokenConfig::new(method)
        })
    }

    /// A method with the settings that were typed.
    fn token_method(&self, mut method: TokenMethod) -> anyhow::Result<TokenMethod> {
        match &mut method {
            TokenMethod::IntegratedGradients {
                steps,
                rule,
                baseline,
                via,
            } => {
                *steps = self.steps.unwrap_or(*steps);
                *rule = self.step_rule.map_or(*rule, Into::into);
                via.clone_from(&self.via);
                match &self.baseline {
                    None => {}
                    Some(ReferenceSet::One(one)) => *baseline = one.clone(),
                    Some(set) => {
                        return Err(Error::invalid(format!(
                            "`ig` starts from one baseline, and `{set}` is many; take `--method expected-gradients`, which draws among them, or \
                             `--baseline pair`"
                        ))
                        .into());
                    }
                }
            }
            TokenMethod::SmoothGrad { draws, noise } => {
                *draws = self.draws.unwrap_or(*draws);
                *noise = self.noise.unwrap_or(*noise);
            }
            TokenMethod::ExpectedGradients { draws, reference } => {
                *draws = self.draws.unwrap_or(*draws);
                *reference = self.baseline.clone().unwrap_or_default();
            }
            TokenMethod::GradientShap {
                draws,
                noise,
                reference,
            } => {
                *draws = self.draws.unwrap_or(*draws);
                *noise = self.noise.unwrap_or(*noise);
                *reference = self.baseline.clone().unwrap_or_default();
            }
            _ => {}
        }
        Ok(method)
    }

    /// One method of tokens and random shares, or all of them.
    pub(super) fn scores(&self, spec: &ModelSpec) -> anyhow::Result<ScoreConfig> {
        let methods = match self.method {
            Some(chosen) if chosen.scored() != Scored::Tokens => {
                return Err(Error::invalid(format!(
                    "`--score` is about methods of tokens, and `{}` is none; leave `--method` out to score them all, or take one such as `ig`",
                    chosen.name()
                ))
                .into());
            }
            Some(MethodChoice::Random) => vec![TokenMethod::Random],
            Some(chosen) => vec![chosen.name().parse()?, TokenMethod::Random],
            None => {
                let mut all = TokenMethod::all();
                all.retain(|method| spec.encoder.is_none() || !method.needs_decoder());
                all
            }
        };
        let methods = methods.into_iter().map(|method| self.token_method(method));
        let mut config = ScoreConfig::new(methods.collect::<anyhow::Result<_>>()?);
        if let Some(role) = &self.gold {
            config = config.with_gold(role);
        }
        if !self.by.is_empty() {
            config.scores.clone_from(&self.by);
        }
        Ok(config)
    }
}
