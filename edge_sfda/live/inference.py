"""The loop without learning: newest frame in, mask out. Takes every artefact and imports no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edge_sfda.data.frames import Frame
from edge_sfda.errors import FrameError
from edge_sfda.live.capture import Capture
from edge_sfda.live.events import Events
from edge_sfda.live.status import STALE_S, Latest, LoopStatus, Phase
from edge_sfda.live.tempo import Tempo
from edge_sfda.runtime.predict import Segmentation, Segmenter

_TAKE_S = 0.1  # that it waits for a frame before it looks after the rest
_NAN = float("nan")


class Inference:
    """Runs until its source ends or `stop`; `status` as `live.loop.Loop` gives it, without learning.

    A frame is predicted whatever is wrong with it: what a fault keeps away from learning may still be looked at.

    Args:
        segmenter: closed by the caller.
        capture: of the frames; closed by the caller.
        events: where stale and sound frames are told.
        clock: seconds that only grow.
    """

    def __init__(
        self, segmenter: Segmenter, capture: Capture, *, events: Events, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.segmenter, self.capture, self.events = segmenter, capture, events
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._frames = 0
        self._fault = ""
        self._stale = True
        self._last_at = clock()
        self._tempo = Tempo()
        self._confidence = _NAN

    def status(self) -> LoopStatus:
        """Return a snapshot; from any thread."""
        with self._lock:
            return LoopStatus(
                phase=Phase.OFF,
                detail=f"frames are {self._fault}" if self._fault else "inference only",
                step=0,
                steps=0,
                generation=0,
                frames=self._frames,
                fps=self._tempo.fps,
                latency_ms=self._tempo.latency_ms,
                confidence=self._confidence,
                doubt=_NAN,
                reliability=_NAN,
                loss=_NAN,
                agreement=_NAN,
                stale=self._stale,
                restarts=0,
                learned_s=0.0,
                capture=self.capture.status(),
            )

    def stop(self) -> None:
        """Let `run` return after the frame it is at."""
        self._stopping.set()

    def run(self, on_frame: Callable[[Latest, Segmentation], None]) -> None:
        """Predict until the source ends or `stop`.

        Args:
            on_frame: called with each prediction, in this thread: what it does delays the next one.

        Raises:
            DataError: a recording cannot be read further. A camera is tried again for ever.
            EngineError: the engine failed.
        """
        self.events.tell("started", mode="infer")
        while not self._stopping.is_set():
            seen = self.capture.take(_TAKE_S)
            if seen is not None:
                self._predict(seen.frame, seen.fault.value if seen.fault is not None else "", on_frame)
            elif self.capture.ended:
                break
            elif not self._stale and self._clock() - self._last_at > STALE_S:
                self._set_stale(True, why=self.capture.status().trouble or "no frame")
        self.events.tell("stopped", frames=self._frames)

    def _predict(self, frame: Frame, fault: str, on_frame: Callable[[Latest, Segmentation], None]) -> None:
        start = self._clock()
        try:
            found = self.segmenter.predict(frame.image)
        except FrameError as error:  # too small for the network
            with self._lock:
                self._fault = f"refused: {error}"
            return
        now = self._clock()
        with self._lock:
            self._frames += 1
            self._fault = fault
            self._last_at = now
            self._tempo.predicted(start, now)
            if found.confidence is not None:
                self._confidence = float(found.confidence[::8, ::8].mean())
        if self._stale:
            self._set_stale(False, seq=frame.seq)
        on_frame(Latest(frame, found.mask, found.confidence, fault), found)

    def _set_stale(self, stale: bool, **facts: str | int) -> None:
        self._stale = stale
        self.events.tell("stale" if stale else "sound frames", **facts)
