import Foundation
// Replays and histories on a test system.

import HostMachine
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads

extension TestSystem {
  /// The machine of the standard histories.
  static func standard() throws -> TestSystem { try TestSystem(memory: SeededHistory.memory) }

  var access: WalkedAccess {
    WalkedAccess(directMap: host.machine.directMap, memory: host.memorySize, tables: memory.pageTables)
  }

  /// Replays `bytes` to the end and gives back what is left.
  func replay(_ bytes: [UInt8], keeping body: (Replay) -> Void = { _ in }) throws -> ReplaySummary {
    try bytes.withUnsafeBytes {
      let replay = try Replay.prepare(try PackedTrace($0), on: memory)
      try replay.run { _ in .goOn }
      body(replay)
      return replay.close()
    }
  }

  /// The way to an interrupt handler, for a thread of this machine.
  var interrupts: InterruptGate {
    InterruptGate(Unmanaged.passUnretained(host).toOpaque()) { host, body, argument in
      Unmanaged<SimulatedMachine>.fromOpaque(host!).takeUnretainedValue().interrupt(argument, body)
    }
  }

  /// As `replay`, by `workers` threads.
  func replay(
    _ bytes: [UInt8], by workers: Int, interrupts: InterruptGate?,
    progress: (Replay.Progress) -> Pace = { _ in .goOn }
  ) throws -> ReplaySummary {
    try bytes.withUnsafeBytes {
      let split = ReplaySplit(workers: workers, firstProcessor: ProcessorIndex(1), interrupts: interrupts)
      let replay = try Replay.prepare(try PackedTrace($0), on: memory, split: split)
      try replay.run(progress: progress)
      return replay.close()
    }
  }

  /// Runs a history with a workspace of its own.
  func run(_ plan: HistoryPlan) -> HistoryOutcome {
    let workspace = UnsafeMutableRawPointer.allocate(
      byteCount: Int(SeededHistory.workspace.rawValue), alignment: 64)
    defer { workspace.deallocate() }
    return SeededHistory.run(plan, on: memory, workspace: workspace)
  }
}

extension ReplaySummary {
  /// The counts by name that the same trace always has: those of the design.
  var figures: [String: UInt64] {
    let kept = [
      "kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free", "mm_page_alloc", "mm_page_free",
      "mm_page_free_batched", "unmatched_object_frees", "unmatched_page_frees", "reused", "skipped",
      "peak_object_bytes", "peak_objects", "peak_pages", "left_objects", "left_pages", "lost",
    ]
    let row = row
    return Dictionary(
      uniqueKeysWithValues: kept.compactMap { key in (row[key] as? UInt64).map { (key, $0) } })
  }

  /// The row that a tool gets.
  var row: [String: Any] {
    var text = ""
    writeJSON(cycles: "cycles") { text += $0.string }
    let last = text.split(separator: "\r\n").last ?? ""
    return (try? JSONSerialization.jsonObject(with: Data(last.utf8)) as? [String: Any]) ?? [:]
  }

  var text: String {
    var text = ""
    print(cycles: "cycles") { text += $0.string + "\n" }
    return text
  }
}

extension Line {
  var string: String { withBytes { String(decoding: $0, as: UTF8.self) } }
}

extension WrittenTrace {
  /// The recorded trace of the repository.
  static func sample() throws -> [UInt8] {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    return [UInt8](try Data(contentsOf: root.appendingPathComponent("Traces/linux-6.1-sample.trace")))
  }
}
