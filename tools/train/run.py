"""Shared by the trainings: options that a resumed run keeps, the average of the weights, the log, the clock, the saving."""
import argparse
import math
import os
import time

import numpy as np
import torch


# ---------------------------------------------------------------- options

def parse(parser, arguments=None, fixed=lambda saved: {}):
    """-> options, the checkpoint that --resume names (or None). A resumed run keeps every option of its checkpoint that the
    command line does not give. fixed(checkpoint): {option: value} of the fixed options; giving another value is an error."""
    options = parser.parse_args(arguments)
    if not options.resume:
        return options, None
    absent = object()
    given = vars(parser.parse_args(arguments, argparse.Namespace(**{name: absent for name in vars(options)})))
    given = {name for name, value in given.items() if value is not absent}
    saved = torch.load(options.resume, map_location="cpu")
    for name, value in fixed(saved).items():
        if name in given and getattr(options, name) != value:
            was = "none was given" if value is None else f"it is {value}"
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: {was} in {options.resume}, and a resumed run "
                         "cannot change it; leave this option out")
    for name in vars(options).keys() - given:
        if name in saved["args"]:  # an older checkpoint may lack newer options
            setattr(options, name, saved["args"][name])
    return options, saved


# ---------------------------------------------------------------- files

def save_atomically(path, thing):
    torch.save(thing, path + ".tmp")
    os.replace(path + ".tmp", path)


class Log:
    """Lines with the time, on the terminal and in a file; and the means of the values noted since the last such line."""

    def __init__(self, path):
        self.file, self.sums = open(path, "a", buffering=1), {}

    def __call__(self, text):
        line = f"{time.strftime('%H:%M:%S')} {text}"
        print(line, flush=True), self.file.write(line + "\n")

    def note(self, values):
        for key, value in values.items():
            self.sums.setdefault(key, []).append(value)

    def means(self):
        text = " ".join(f"{k} {np.mean(v):.3f}" for k, v in self.sums.items())
        self.sums = {}
        return text


# ---------------------------------------------------------------- a run

@torch.no_grad()
def follow(ema, params, step):
    """The average [name: tensor] comes nearer to the parameters of the same names, the later the slower."""
    decay = min(0.998, (1 + step) / (20 + step))
    averages, mine = [ema[n] for n in params], [p.detach() for p in params.values()]
    torch._foreach_mul_(averages, decay), torch._foreach_add_(averages, mine, alpha=1 - decay)


class Run:
    """A training of `trained` [name: parameter] by `optimizer`, within `minutes` of wall time that the schedule follows. `ema`
    is the average of the weights; those of `followed` change."""

    def __init__(self, out, minutes, warmup, trained, followed, optimizer, ema):
        self.minutes, self.warmup = minutes, warmup
        self.trained, self.followed, self.optimizer, self.ema = trained, followed, optimizer, ema
        os.makedirs(os.path.join(out, "export"), exist_ok=True)
        self.log = Log(os.path.join(out, "log.txt"))
        self.step, self.drawing = 0, 0.0
        self.start = self.last_line = self.last_save = time.time()

    def state(self):
        return {"optimizer": self.optimizer.state(), "ema": self.ema, "step": self.step, "seconds": self.seconds()}

    def load(self, state):
        self.optimizer.load(state["optimizer"])
        self.ema, self.step, self.start = state["ema"], state["step"], self.start - state["seconds"]

    def seconds(self):
        return time.time() - self.start

    def progress(self):
        return self.seconds() / (60 * self.minutes)

    def drawn(self, batch):
        """batch(), timed."""
        tick = time.time()
        result = batch()
        self.drawing += time.time() - tick
        return result

    def descend(self, loss, logs, progress, save):
        """One step; a line per 100 of them, save() every four minutes."""
        for p in self.trained.values():
            p.grad = None
        loss.backward()
        scale = min(1.0, (self.step + 1) / self.warmup) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        norm = self.optimizer.step(scale)
        self.step += 1
        follow(self.ema, self.followed, self.step)
        self.log.note({**logs, "norm": norm})
        if self.step % 100 == 0:
            now = time.time()
            self.log(f"step {self.step} progress {progress:.3f} {self.log.means()} s/step {(now - self.last_line) / 100:.3f} "
                     f"data {self.drawing / 100:.3f}")
            self.last_line, self.drawing = now, 0.0
        if time.time() - self.last_save > 240:
            save()
            self.last_save = time.time()
