"""What the paper prints and how much of it we run: tables as data, the scales, and every departure.

The paper is *Towards Neural Architecture Search through Hierarchical Generative Modeling*. Symbols that collide in
its text are settled here once: `z` is the zero-cost vector (never the VAE latent, which is `latent`); `t` is ODE time
in `ccnf` and a triple elsewhere (never a bare `t` outside `ccnf`); `m` is latent size and margin (`latent_dim`,
`margin`); `S` is a space and a stride set; `T` is flow end time and iterations. `macs` and `flops` are two quantities:
`flops` is the paper's unit, 2 x MACs with batch normalisation, ReLU and pooling counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Every size of one run, from labels to tables; one code path, only these numbers differ."""

    name: str
    # corpus (App. A: 400,000 unlabelled and 50,000 labelled cells; batch 64 at 32x32)
    unlabelled: int
    law_draws: int = 2_000  # not stated: ours; draws that measure the sampling law itself
    labelled: int
    label_batch: int
    label_resolution: int
    # proxies against trained accuracy (NATS-Bench, same batch and resolution); no text states it
    validation_networks: int
    # families (Eq. 3)
    n_clusters: int
    cluster_grid: tuple[int, ...]
    # G-VAE (Tab. 6)
    gvae_hidden: int
    latent_dim: int
    gvae_steps: int
    gvae_batch: int
    gvae_lr: float
    gvae_seeds: int  # not stated: ours, as are the three below
    gvae_ablation_steps: int
    labels_held_out: int
    cycle_cells: int
    measured_cells: int = 10_000  # held-out cells and random latents on which models are measured, at most
    # CCNF (Tab. 6)
    ccnf_hidden: int
    ccnf_layers: int
    ccnf_steps: int
    ccnf_nll_steps: int
    ccnf_batch: int
    likelihood_latents: int  # held-out latents whose exact likelihood is taken; not stated, as all below
    # generated cells, their proxies computed
    conditions: int
    condition_cells: int  # cells of each condition
    reference_cells: int  # cells around the NATS reference
    family_scored: int  # cells of a family that are scored, and that are decoded
    family_decoded: int
    solved_cells: int  # cells over which solvers are compared
    # HL-Evo (App. C: T = 20,000, N = 512) and the batch of images that T-CET is taken on
    iterations: int
    population: int
    tcet_batch: int
    tcet_resolution: int
    budgets: tuple[tuple[str, float], ...]  # (quantity, upper bound) of each evolution run at tcet_resolution
    compared_budget: tuple[str, float]  # one of `budgets`, under which searches are compared
    comparison_iterations: int  # ours: of HL-Evo, flat evolution and random search under it, and for how many seeds
    comparison_seeds: int
    requests: int = 100  # ours: asked of the sequence generator
    best_of: int = 10  # ours: its designs under each budget
    # sequence generator (Tab. 6)
    sequence_hidden: int
    sequence_layers: int
    sequence_heads: int
    sequence_steps: int
    sequence_batch: int
    sequence_lr: float
    # trained comparisons (Tables 1, 2, 4, App. E)
    table1_cells: int
    table1_decodes: int = 20  # paper: Tab. 1, cells a strategy
    reference_seeds: int = 3  # ours: trainings of the NATS reference
    train_width: int
    train_repeats: int
    train_resolution: int
    train_images: int
    test_images: int
    train_epochs: int
    table2_budget: tuple[str, float]  # one of `budgets`
    table2_evaluations: tuple[int, int]  # of plain evolution, and of the sequence generator; HL-Evo has `iterations`
    table2_top: int
    table2_images: int
    table2_epochs: int
    table2_recipe: str
    reduced_training: tuple[int, int]  # models and epochs of App. E's proxy
    table3_budgets: tuple[float, ...]  # FLOPs of the paper (2 x MACs) at table3_resolution
    table3_resolution: int
    table3_classes: int
    table4_params_share: float  # of the Wide-ResNet's parameters, which a design may have
    table4_epochs: int
    table4_samples: int | None  # of each task, at most; None for all
    # quickstart (notebook 00)
    quick_images: tuple[int | None, int | None]  # training and test images; None for all
    quick_epochs: int


SCALES = {
    "smoke": Scale(
        name="smoke",
        unlabelled=4_000,
        labelled=88,
        label_batch=16,
        label_resolution=16,
        validation_networks=16,
        n_clusters=6,
        cluster_grid=(1, 2, 3, 4, 5, 6, 7, 8),
        gvae_hidden=64,
        latent_dim=64,
        gvae_steps=320,
        gvae_batch=128,
        gvae_lr=1e-3,
        gvae_seeds=1,
        gvae_ablation_steps=40,
        labels_held_out=44,
        cycle_cells=8,
        ccnf_hidden=128,
        ccnf_layers=5,
        ccnf_steps=400,
        ccnf_nll_steps=5,
        ccnf_batch=256,
        likelihood_latents=64,
        conditions=2,
        condition_cells=4,
        reference_cells=4,
        family_scored=1,
        family_decoded=10,
        solved_cells=64,
        iterations=24,
        population=8,
        tcet_batch=16,
        tcet_resolution=16,
        budgets=(("params", 3e5), ("params", 1e6), ("flops", 60e6)),
        compared_budget=("params", 3e5),
        comparison_iterations=16,
        comparison_seeds=1,
        sequence_hidden=64,
        sequence_layers=4,
        sequence_heads=4,
        sequence_steps=120,
        sequence_batch=32,
        sequence_lr=2e-3,
        table1_cells=3,
        train_width=8,
        train_repeats=1,
        train_resolution=16,
        train_images=256,
        test_images=256,
        train_epochs=1,
        table2_budget=("params", 3e5),
        table2_evaluations=(12, 4),
        table2_top=2,
        table2_images=256,
        table2_epochs=1,
        table2_recipe="nats12",
        reduced_training=(2, 1),
        table3_budgets=(18e6, 24e6, 40e6),
        table3_resolution=16,
        table3_classes=10,
        table4_params_share=0.1,
        table4_epochs=1,
        table4_samples=192,
        quick_images=(512, 256),
        quick_epochs=2,
    ),
    "lite": Scale(
        name="lite",
        unlabelled=200_000,
        labelled=6_016,
        label_batch=64,
        label_resolution=32,
        validation_networks=520,
        n_clusters=32,
        cluster_grid=(1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128),
        gvae_hidden=128,
        latent_dim=256,
        gvae_steps=5_000,
        gvae_batch=256,
        gvae_lr=1e-3,
        gvae_seeds=3,
        gvae_ablation_steps=1_000,
        labels_held_out=1_200,
        cycle_cells=300,
        ccnf_hidden=512,
        ccnf_layers=9,
        ccnf_steps=20_000,
        ccnf_nll_steps=200,
        ccnf_batch=256,
        likelihood_latents=1_000,
        conditions=20,
        condition_cells=25,
        reference_cells=100,
        family_scored=5,
        family_decoded=100,
        solved_cells=256,
        iterations=3_000,
        population=77,  # the paper's share of the iterations
        tcet_batch=8,  # ranks 40 random networks as 64 images do (Spearman 0.99), in half the time of 16
        tcet_resolution=32,
        budgets=(("params", 1e6), ("flops", 100e6), ("flops", 600e6), ("params", 3e5), ("flops", 300e6)),
        compared_budget=("params", 3e5),  # a third of the paper's; its networks cost a third
        comparison_iterations=1_000,
        comparison_seeds=5,
        sequence_hidden=128,
        sequence_layers=4,
        sequence_heads=4,
        sequence_steps=2_000,
        sequence_batch=64,
        sequence_lr=1e-3,
        table1_cells=20,
        train_width=8,
        train_repeats=3,
        train_resolution=16,
        train_images=8_000,
        test_images=4_000,
        train_epochs=6,
        table2_budget=("flops", 100e6),  # its networks train at a fifth of the cost of 0.3M parameters
        table2_evaluations=(7_200, 100),
        table2_top=5,
        table2_images=4_000,
        table2_epochs=6,
        table2_recipe="nats12",
        reduced_training=(16, 3),
        table3_budgets=(18e6, 24e6, 40e6),
        table3_resolution=32,
        table3_classes=10,
        table4_params_share=1.0,
        table4_epochs=5,
        table4_samples=2_000,
        quick_images=(1_000, 500),
        quick_epochs=2,
    ),
    "paper": Scale(  # App. A, Sec. 4, App. C; what no text states is marked
        name="paper",
        unlabelled=400_000,
        labelled=50_000,
        label_batch=64,
        label_resolution=32,
        validation_networks=2_000,  # not stated: ours
        n_clusters=32,
        cluster_grid=(1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128),
        gvae_hidden=512,
        latent_dim=256,
        gvae_steps=500_000,
        gvae_batch=64,
        gvae_lr=3.5e-4,
        gvae_seeds=3,
        gvae_ablation_steps=20_000,
        labels_held_out=5_000,
        cycle_cells=2_000,
        ccnf_hidden=512,
        ccnf_layers=9,
        ccnf_steps=20_000,  # not stated
        ccnf_nll_steps=10_000,  # not stated; about 0.5 V100-hours
        ccnf_batch=256,
        likelihood_latents=2_000,
        conditions=50,
        condition_cells=40,
        reference_cells=200,
        family_scored=25,
        family_decoded=1_000,
        solved_cells=1_024,
        iterations=20_000,
        population=512,
        tcet_batch=64,
        tcet_resolution=32,
        budgets=(("params", 1e6), ("flops", 450e6), ("flops", 1000e6)),
        compared_budget=("params", 1e6),
        comparison_iterations=20_000,
        comparison_seeds=5,
        sequence_hidden=768,
        sequence_layers=12,
        sequence_heads=12,
        sequence_steps=1_000_000,  # not stated; about 11 V100-hours at batch 1
        sequence_batch=1,
        sequence_lr=1e-3,
        table1_cells=20,
        train_width=16,
        train_repeats=5,
        train_resolution=32,
        train_images=50_000,
        test_images=10_000,
        train_epochs=200,
        table2_budget=("params", 1e6),
        table2_evaluations=(480_000, 100),
        table2_top=10,
        table2_images=50_000,
        table2_epochs=1_440,
        table2_recipe="zennas_cifar",
        reduced_training=(40, 50),
        table3_budgets=(450e6, 600e6, 1000e6),
        table3_resolution=224,
        table3_classes=1000,
        table4_params_share=1.0,
        table4_epochs=200,
        table4_samples=None,
        quick_images=(None, None),
        quick_epochs=12,
    ),
}
