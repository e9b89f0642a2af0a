import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from services.trainer.run.objective import (
    denoising_target,
    losses_of,
    min_snr_weights,
    squared_errors,
)
from services.trainer.run.randomness import index_of, normal, uniform

_SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
_STEPS = torch.tensor([0, 250, 500, 999])


def test_min_snr_weights_are_those_of_the_paper_in_every_prediction_type() -> None:
    snr = compute_snr(_SCHEDULER, _STEPS)
    capped = snr.clamp(max=5.0)
    expected = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}
    for kind, weights in expected.items():
        found = min_snr_weights(_SCHEDULER.alphas_cumprod, _STEPS, 5.0, kind)  # type: ignore[arg-type]
        torch.testing.assert_close(found, weights)


def test_min_snr_stays_finite_at_zero_terminal_snr() -> None:
    zero = DDPMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    for kind in ("epsilon", "v_prediction", "sample"):
        weights = min_snr_weights(zero, torch.tensor([0, 999]), 5.0, kind)  # type: ignore[arg-type]
        assert torch.isfinite(weights).all()


def test_one_pass_with_both_kinds_is_two_losses_in_one() -> None:
    numbers = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 6, 4, 8, 8, generator=numbers)
    errors = squared_errors(prediction, target)
    losses = losses_of(errors, None, instance_count=2, prior_weight=0.5)
    instance = torch.nn.functional.mse_loss(prediction[:2], target[:2])
    prior = torch.nn.functional.mse_loss(prediction[2:], target[2:])
    torch.testing.assert_close(losses.instance, instance)
    torch.testing.assert_close(losses.prior, prior)
    torch.testing.assert_close(losses.total, instance + 0.5 * prior)


def test_the_perfect_denoiser_of_each_kind_gets_back_the_picture() -> None:
    numbers = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 4, 8, 8, generator=numbers)
    noisy = _SCHEDULER.add_noise(latents, noise, _STEPS)
    power = _SCHEDULER.alphas_cumprod[_STEPS][:, None, None, None]
    signal, level = power.sqrt(), (1 - power).sqrt()
    velocity = denoising_target(_SCHEDULER, "v_prediction", latents, noise, _STEPS)
    torch.testing.assert_close(signal * noisy - level * velocity, latents, atol=1e-4, rtol=1e-4)
    epsilon = denoising_target(_SCHEDULER, "epsilon", latents, noise, _STEPS)
    torch.testing.assert_close(signal * latents + level * epsilon, noisy)
    assert denoising_target(_SCHEDULER, "sample", latents, noise, _STEPS) is latents


def test_draws_depend_on_seed_purpose_and_counters_alone() -> None:
    torch.manual_seed(1)
    first = normal((3,), 0, "noise", 5)
    torch.manual_seed(2)
    assert torch.equal(first, normal((3,), 0, "noise", 5))
    others = [
        normal((3,), 1, "noise", 5),
        normal((3,), 0, "latent", 5),
        normal((3,), 0, "noise", 6),
    ]
    assert all(not torch.equal(first, other) for other in others)
    draws = [uniform(0, "timestep", counter) for counter in range(2000)]
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02


def test_every_round_shows_every_picture_once() -> None:
    rounds = [[index_of(5 * r + p, 5, 0, "instance order") for p in range(5)] for r in range(20)]
    assert all(sorted(indices) == [0, 1, 2, 3, 4] for indices in rounds)
    assert len({tuple(indices) for indices in rounds}) > 10
