"""Sampling does what transformers' own logits processors do, in their order, and draws what they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lfm_onnx.errors import ArtifactError, InputError
from lfm_onnx.runtime.sampling import Sampler, SamplingOptions, candidates, penalized, softmax
from transformers.generation import logits_process as processors


def transformers_scores(logits: np.ndarray, history: list[int], options: SamplingOptions) -> np.ndarray:
    """The scores that transformers' generate() would sample from, -inf where a token is ruled out."""
    chain = processors.LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1.0:
        chain.append(processors.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chain.append(processors.TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        chain.append(processors.TopPLogitsWarper(options.top_p))
    if options.min_p:
        chain.append(processors.MinPLogitsWarper(options.min_p))
    return chain(torch.tensor([history]), torch.tensor(logits[None]))[0].numpy()


def own_scores(logits: np.ndarray, history: list[int], options: SamplingOptions) -> np.ndarray:
    seen = np.unique(np.array(history))
    ids, scores = candidates(penalized(logits, seen, options.repetition_penalty), options)
    out = np.full(logits.shape, -np.inf, np.float32)
    out[ids] = scores
    return out


OPTIONS = [
    SamplingOptions(top_k=0),
    SamplingOptions(top_k=1),
    SamplingOptions(top_k=40),
    SamplingOptions(top_k=100_000),
    SamplingOptions(top_k=0, top_p=0.9),
    SamplingOptions(top_k=0, top_p=0.0),
    SamplingOptions(top_k=0, min_p=0.2),
    SamplingOptions(top_k=0, min_p=1.0),
    SamplingOptions(top_k=0, temperature=0.3, repetition_penalty=1.3),
    SamplingOptions(top_k=0, repetition_penalty=0.7),
    SamplingOptions(top_k=80, temperature=0.2, repetition_penalty=1.05),
    SamplingOptions(top_k=50, top_p=0.8, min_p=0.05, temperature=1.7, repetition_penalty=1.2),
    SamplingOptions(top_k=7, top_p=0.5, min_p=0.5, temperature=0.05, repetition_penalty=2.0),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_same_tokens_stay_with_the_same_scores_as_in_transformers(options: SamplingOptions, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (3 * random.standard_normal(500)).astype(np.float32)
    history = [int(i) for i in random.integers(0, 500, 60)]
    expected = transformers_scores(logits, history, options)
    found = own_scores(logits, history, options)
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ties_with_the_kth_token_are_all_kept_as_in_transformers() -> None:
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    options = SamplingOptions(top_k=2)
    assert np.array_equal(own_scores(logits, [0], options), transformers_scores(logits, [0], options))
    assert np.isfinite(own_scores(logits, [0], options)).sum() == 3


def test_greedy_takes_the_largest_logit_after_the_repetition_penalty() -> None:
    logits = np.array([0.0, 4.0, 3.0], np.float32)
    assert Sampler(SamplingOptions(), [1]).choose(logits) == 1
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5), [1])
    assert sampler.choose(logits) == 2
    assert sampler.choose(logits) == 1, "the token chosen before is penalized too: 4 / 1.5 > 3 / 1.5"


def test_draws_follow_the_probabilities() -> None:
    logits = np.array([2.0, 1.0, 0.0, -50.0], np.float32)
    sampler = Sampler(SamplingOptions(do_sample=True, top_k=0, seed=0), [])
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), softmax(logits), atol=0.01)


def test_a_seed_repeats_the_draws_and_another_gives_others() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(do_sample=True, seed=seed), [])
        return [sampler.choose(logits) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_half_precision_logits_are_sampled_in_single_precision() -> None:
    logits = np.array([60000.0, 59000.0, 10.0], np.float16)
    assert Sampler(SamplingOptions(do_sample=True, temperature=0.1, seed=0), []).choose(logits) == 0


def test_defaults_come_from_generation_config_and_the_caller_goes_before_them() -> None:
    config = {"do_sample": True, "temperature": 0.2, "top_k": 80, "repetition_penalty": 1.05, "eos_token_id": 7}
    defaults = SamplingOptions.chosen(config)
    assert defaults == SamplingOptions(do_sample=True, temperature=0.2, top_k=80, repetition_penalty=1.05)
    assert SamplingOptions.chosen(config, top_k=5, seed=None) == SamplingOptions(True, 0.2, 5, repetition_penalty=1.05)
    assert SamplingOptions.chosen(config, temperature=0) == SamplingOptions(False, 0.2, 80, repetition_penalty=1.05)


def test_greedy_is_the_default_and_any_sampling_option_turns_sampling_on() -> None:
    defaults = SamplingOptions.chosen({"temperature": 0.2})
    assert not defaults.do_sample, "transformers, too, reads a temperature without do_sample as greedy"
    assert not defaults.updated(repetition_penalty=1.1, seed=3).do_sample
    assert defaults.updated(top_p=0.9).do_sample
    assert SamplingOptions().top_k == 50, "transformers' own default"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1e-308}, "temperature"),
        ({"temperature": 0, "do_sample": True}, "temperature 0"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e300}, "repetition_penalty"),
        ({"seed": -3}, "seed"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        SamplingOptions().updated(**options)


def test_a_field_that_cannot_be_used_matters_where_it_is_used_and_is_named_with_its_file() -> None:
    config = {"do_sample": True, "top_k": "many", "temperature": 0.0}
    with pytest.raises(InputError, match=r"generation_config\.json: temperature is 0\.0, expected a number above 0"):
        SamplingOptions.chosen(config)
    with pytest.raises(InputError, match=r'generation_config\.json: top_k is "many"'):
        SamplingOptions.chosen(config, temperature=0.5)
    assert SamplingOptions.chosen(config, temperature=0.5, top_k=3) == SamplingOptions(True, 0.5, 3)
    assert SamplingOptions.chosen(config, temperature=0) == SamplingOptions()
    assert SamplingOptions.chosen({**config, "do_sample": False}) == SamplingOptions()
    with pytest.raises(InputError, match="repetition_penalty is 0"):
        SamplingOptions.chosen({"repetition_penalty": 0}, temperature=0)
    with pytest.raises(InputError, match='do_sample is "true"'):
        SamplingOptions.chosen({"do_sample": "true"})
    assert SamplingOptions.chosen({"do_sample": "true"}, do_sample=False) == SamplingOptions()


@pytest.mark.parametrize("options", [SamplingOptions(), *(o.updated(do_sample=True, seed=1) for o in OPTIONS)], ids=str)
@given(values=st.lists(st.floats(width=16), min_size=1, max_size=9))
def test_logits_that_are_no_numbers_end_a_generation_in_one_line(options: SamplingOptions, values: list[float]) -> None:
    logits = np.array(values, np.float16)
    if np.isfinite(logits.max()):
        assert logits[Sampler(options, []).choose(logits)] > -np.inf
        return
    with pytest.raises(ArtifactError, match="not numbers"):
        Sampler(options, []).choose(logits)
