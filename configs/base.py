"""Every key there is, with its default. Other configs change what they need; `--config.KEY=VALUE` overrides."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults of all jobs."""
    c = ConfigDict()
    c.seed = 0  # of weights, order of the data, and every sampled token
    c.stages = ()  # overrides, one dict a stage: dict(name=..., steps=..., temperature=...); of which keys: config.py

    c.model = ConfigDict()
    c.model.path = ""  # Hugging Face directory or hub name, or a directory made by experiments/import_hf.py
    c.model.preset = ""  # random weights of this shape (models/presets.py) where `path` is empty
    c.model.tokenizer = ""  # directory or hub name; "": the model's own; "arithmetic", "long_arithmetic"
    c.model.dtype = "bfloat16"  # compute dtype: bfloat16, float16 or float32
    # full, attention, dots, none: what the backward pass recomputes, most to least; offload: full, kept on the host
    c.model.remat = "full"
    c.model.lora_rank = 0  # adapters of this rank are trained in place of the model, which is frozen; 0: off
    c.model.lora_alpha = 32.0  # an adapter's output is multiplied by alpha / rank
    # Projections that have an adapter.
    c.model.lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    c.model.lora_base = ""  # how the frozen projections are kept: "": in model.dtype; int8 or fp8: in 8 bits

    c.data = ConfigDict()
    c.data.train = ""  # file, directory, hub name, "arithmetic", "long_arithmetic" or "reasoning_gym:chain_sum,..."
    c.data.mix = ()  # several sources with weights, in place of train: (("a.parquet", 0.7), ("b.jsonl", 0.3))
    # How every question ends, once.
    c.data.suffix = r"Let's think step by step and output the final answer within \boxed{}."
    c.data.drop_above = 0.9  # at a stage's end problems with a higher accuracy are dropped; 1: none
    c.data.drop_by = "mean"  # mean: over a stage's visits, as the released script does; last: of the last visit
    c.data.max_prompt_tokens = 1024  # longer prompts are dropped and counted; benchmarks keep all of theirs

    c.rollout = ConfigDict()
    c.rollout.prompts = 128  # per step
    c.rollout.samples = 8  # per prompt
    c.rollout.temperature = 1.0  # of sampling in training; the loss uses the same
    c.rollout.top_p = 1.0  # another, or a top_k, where difficulty is measured only: training is refused with it
    c.rollout.top_k = 0  # 0: off
    c.rollout.max_response_tokens = 4096  # thoughts included; longer responses are truncated there
    c.rollout.slots = 256  # sequences decoded at once
    c.rollout.devices = 0  # the last so many sample the next batch while the others learn from this one
    c.rollout.page_size = 64  # tokens
    c.rollout.weights = ""  # "": in the model's dtype; int8 or fp8: projections in 8 bits, and importance weights
    c.rollout.cache_dtype = ""  # "": the model's dtype
    c.rollout.cache_gib = 0.0  # page pool in GiB a device; 0: enough for every slot's longest sequence
    c.rollout.tokens_per_call = 32  # decoded on the device between two looks by the host
    c.rollout.yarn_factor = 1.0  # of context extension, in sampling and in the update; 1: off
    c.rollout.yarn_original = 0  # tokens that it extends; 0: what the model was trained with, as its own config says
    c.rollout.yarn_attention_factor = 1.0  # on cos and sin; the recipe found YaRN's own worse

    c.search = ConfigDict()  # of the temperature that restores the diversity at the start of training
    c.search.on = False  # set by a later stage's temperature="search"
    c.search.problems = 64  # of the training problems
    c.search.samples = 8  # responses to each
    c.search.highest = 1.6  # temperature

    c.algorithm = ConfigDict()
    c.algorithm.loss = "grpo"  # grpo, gspo, cispo or sft: rl/losses.py, with the settings of each paper
    c.algorithm.advantage = "group"  # group, mean or rloo: rl/advantages.py
    c.algorithm.aggregation = "token"  # token: mean over all response tokens; sequence: mean of means; constant
    c.algorithm.clip = (0.2, 0.28)  # below, above (DAPO, arXiv 2503.14476)
    c.algorithm.dual_clip = 0.0  # bound on the ratio where the advantage is negative; 0: off
    c.algorithm.old_logprobs = "trainer"  # trainer; recorded: ratios to the log-probs that the sampler recorded
    c.algorithm.importance_cap = 0.0  # of weights from the sampler to old_logprobs; 0: none, or 2 with rollout.weights
    c.algorithm.kl = 0.0  # coefficient of the k3 KL to the reference model; 0: no reference
    c.algorithm.rescue = True  # a group that failed gets a right response of an earlier visit (rl/exploration.py)
    c.algorithm.rescue_gib = 4.0  # right responses kept for that, the newest of each problem; in each process
    c.algorithm.substitute = True  # groups of equal rewards are replaced by copies of mixed ones
    c.algorithm.min_mixed = 0.0  # no update at this share of mixed groups or less (released code: 1/3); 0: off
    c.algorithm.overlong_buffer = 0  # tokens before the limit over which the reward falls by 1 (DAPO); 0: off
    c.algorithm.mask_truncated = False  # truncated responses are left out of the loss
    c.algorithm.mask_drifted = 0.0  # nats from the sampler's log-probs beyond which sequences are left out; 0: off
    c.algorithm.mask_drifted_negative = 0.0  # those of negative advantage, by mean log(p_sampler / p); 0: off
    c.algorithm.entropy = 0.0  # coefficient of the bonus for each token's entropy; with a target, where it starts
    c.algorithm.entropy_target = 0.0  # nats a token that the coefficient is raised and lowered to hold; 0: off
    c.algorithm.entropy_step = 0.005  # change of the coefficient after each step, towards the target (Skywork-OR1)
    c.algorithm.covariance_clip = 0.0  # share of tokens, of those that lower entropy, without gradient (2e-4); 0: off
    c.algorithm.covariance_bounds = (1.0, 5.0)  # covariance of those tokens (Clip-Cov, arXiv 2505.22617)

    c.updates = ConfigDict()
    c.updates.row_lengths = (1024, 4096)  # packed rows have one of these lengths
    c.updates.rows = 0  # longest rows in a pass, rounded up to a multiple of mesh.data x mesh.fsdp; 0: as many as that
    c.updates.minibatches = 1  # optimizer updates per batch of rollouts
    c.updates.epochs = 1  # passes over each batch of rollouts
    c.updates.max_skipped = 10  # updates that were not finite, in a row, before the run stops

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw, muon, lion or sgd (with momentum): optim/optimizer.py
    c.optimizer.learning_rate = 1e-6  # after the warm-up
    c.optimizer.schedule = "constant"  # constant, or cosine to a tenth
    c.optimizer.schedule_span = "run"  # run: one schedule over all stages; stage: it starts anew in each
    c.optimizer.warmup_steps = 0  # updates over which the rate rises from 0
    c.optimizer.betas = (0.9, 0.999)  # decay of the first and second moment
    c.optimizer.weight_decay = 0.01  # decoupled, of matrices and vectors alike
    c.optimizer.clip_norm = 1.0  # 0: off
    c.optimizer.offload = False  # moments lie in the host's memory between updates, and pass through the device's
    c.optimizer.moments = "float32"  # how AdamW's are kept; bfloat16: half of it, int8: a quarter

    c.mesh = ConfigDict()
    c.mesh.data = 1  # copies of the parameters, each with its share of the rows
    c.mesh.fsdp = -1  # -1: all devices that are left
    c.mesh.tensor = 1  # parts of heads and MLP, within one host
    c.mesh.context = 1  # parts of a row, for long sequences

    c.reward = ConfigDict()
    c.reward.functions = (("verify", 1.0),)  # weighted sum, by name or "my_rewards.py:function": docs/own_reward.md
    c.reward.workers = 4  # processes that judge answers, on each host
    c.reward.timeout_s = 2.0  # of computing; an answer that takes longer is wrong
    c.reward.memory_gib = 2.0  # of address space a worker
    c.reward.require_think = "auto"  # whether only text after </think> counts: yes, no; auto: as the chat template is

    c.training = ConfigDict()
    c.training.steps = 100  # of GRPO: one batch of rollouts each
    c.training.checkpoint_every = 10  # steps
    c.training.checkpoint_minutes = 30.0  # since the save before, where that comes sooner; 0: by steps alone
    c.training.keep = 2  # newest checkpoints
    c.training.keep_every = 0  # every n-th step is saved and never removed; 0: none
    c.training.keep_best = ""  # the best by this metric is kept too, such as "reward"; "-loss": the lowest
    c.training.evaluate_every = 0  # steps; 0: never
    c.training.grace_s = 60.0  # after SIGTERM: by then the run has saved, or ends without
    c.training.watchdog_minutes = 60.0  # without progress, until the run ends to be started again; 0: never
    c.training.loggers = ("tensorboard",)  # and wandb, mlflow: loggers.py
    c.training.profile_steps = ()  # first and last step of which WORKDIR/profile gets a trace; (): none
    c.training.log_samples = 2  # groups kept each step for the report, and their first responses in samples.jsonl

    c.sft = ConfigDict()
    c.sft.data = ""  # jsonl, parquet or hub dataset with `messages`; "arithmetic", "long_arithmetic": made traces
    c.sft.steps = 1000  # optimizer updates
    c.sft.batch_size = 64  # conversations per optimizer update
    c.sft.shuffle = True  # False: in the data's order
    c.sft.checkpoint_every = 500  # steps
    c.sft.learning_rate = 1e-5  # this and the two below in place of those of optimizer
    c.sft.schedule = "cosine"  # to a tenth; or constant
    c.sft.warmup_steps = 50  # updates over which the rate rises from 0

    c.difficulty = ConfigDict()  # measured with the model to be trained and the first stage's sampling
    c.difficulty.problems = 0  # the first so many of data.train; 0: all
    c.difficulty.samples = 8  # rollouts a problem
    c.difficulty.keep = ((0.0, 0.999),)  # lowest and highest accuracy of each band that is kept: 8/8 is dropped

    c.evaluation = ConfigDict()
    c.evaluation.benchmarks = ("aime24", "aime25", "amc23", "minerva", "olympiad")  # "aime24:32": 32 samples of it
    c.evaluation.samples = 4  # per problem, where the benchmark's name has no number
    c.evaluation.temperature = 1.0  # 0: greedy
    c.evaluation.top_p = 1.0  # 1: off
    c.evaluation.top_k = 0  # 0: off
    c.evaluation.max_response_tokens = 4096  # thoughts included
    c.evaluation.yarn_factor = 1.0  # in evaluation alone, where it is more than rollout's; the recipe: 1.5
    c.evaluation.max_problems = 0  # 0: all
    return c
