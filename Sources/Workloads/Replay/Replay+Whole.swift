// A replay from its bytes to its summary, as the console and the tool run it.

import KernelMemory
import MemoryPrimitives

extension Replay {
  /// The fate of what a trace leaves live.
  package enum Rest: Sendable { case freed, kept }

  /// Checks a packed trace and prepares its replay.
  package static func prepare(
    _ bytes: UnsafeRawBufferPointer, on system: MemorySystem, split: ReplaySplit? = nil
  ) throws(ReplayError) -> Replay {
    let trace: PackedTrace
    do throws(TraceError) { trace = try PackedTrace(bytes) } catch { throw .trace(error) }
    return try prepare(trace, on: system, split: split)
  }

  /// Replays a packed trace. A replay that `progress` stops frees what is live, whatever `rest` says.
  package static func whole(
    _ bytes: UnsafeRawBufferPointer, on system: MemorySystem, split: ReplaySplit? = nil, rest: Rest = .freed,
    progress: (Progress) -> Pace
  ) throws(ReplayError) -> ReplaySummary {
    let replay = try prepare(bytes, on: system, split: split)
    var pace = Pace.goOn
    try replay.run {
      if pace == .goOn { pace = progress($0) }
      return pace
    }
    return rest == .kept && pace == .goOn ? replay.summary : replay.close()
  }
}
