# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Apache Beam, which need not be installed."""

from types import SimpleNamespace


class FakeBeam:
    """Beam's three transforms, run here and in another order than they were given."""

    def __init__(self):
        self.units, self.work = [], None

    def Create(self, elements, reshuffle):
        return Step(lambda pipeline: setattr(pipeline, "units", elements))

    def Reshuffle(self):
        return Step(lambda pipeline: None)

    def Map(self, work):
        return Step(lambda pipeline: setattr(pipeline, "work", work))

    def __or__(self, step):
        step.apply(self)
        return self

    def run(self):
        for unit in reversed(self.units):
            self.work(unit)
        return self

    def wait_until_finish(self):
        pass


class Step(SimpleNamespace):
    def __init__(self, apply):
        super().__init__(apply=apply)

    def __rrshift__(self, name):
        return self
