// The answers for a debugger that has stopped the machine: Scripts/gdb.py calls `kernel_debugger` and prints the text.
//
// The layers describe themselves here, because optimised code keeps few layouts that a debugger could read. A query
// changes nothing. The machine runs during the call, which may interrupt any code of the processor that makes it. So a
// query may take spin locks, and refuses to answer while this processor holds one.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

enum DebuggerQueries {
  /// The questions, by the numbers that the debugger uses.
  enum Question: UInt32 { case frames = 1, kmem, threads, whatis, place }

  /// The last answer, a line and a zero. Only the debugger reads it, after the call. A literal, because a build with
  /// assertions initialises repeated elements at first use.
  nonisolated(unsafe) private static var text: InlineArray<41, UInt64> = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  ]

  /// Returns row `row` of the answer, its fields separated by tabs; nil behind the last row.
  static func answer(_ question: UInt32, about argument: UInt64, row: UInt32) -> UnsafePointer<UInt8>? {
    guard let question = Question(rawValue: question) else { return nil }
    if question == .place { return row == 0 ? keep(Symbols.place(argument)) : nil }
    guard let memory = Assembly.memory else {
      return row == 0 ? keep("! The memory subsystem is not up yet.") : nil
    }
    let rank = cp_held_rank()
    if rank != 0 {
      return row == 0
        ? keep("! This processor holds a spin lock of rank \(rank): continue, and ask again.") : nil
    }
    let line: Line? =
      switch question {
      case .frames: frames(memory, row)
      case .kmem: cache(memory, row)
      case .threads: thread(row)
      case .whatis: description(memory, VirtualAddress(argument), row)
      case .place: nil
      }
    return line.map { keep($0) }
  }

  private static func keep(_ line: Line) -> UnsafePointer<UInt8> {
    withUnsafeMutablePointer(to: &text) { text in
      let bytes = UnsafeMutableRawPointer(text).assumingMemoryBound(to: UInt8.self)
      for index in 0..<line.count { bytes[index] = line[index] }
      bytes[line.count] = 0
      return UnsafePointer(bytes)
    }
  }

  private static func frames(_ memory: MemorySystem, _ row: UInt32) -> Line? {
    var left = row
    for value in UInt8(0)..<UInt8.max {
      guard let role = FrameRole(rawValue: value) else { break }
      let count = memory.physical.count(role)
      guard role != .absent, count > .zero else { continue }
      if left == 0 { return "\(role.description)\t\(count.rawValue)" }
      left -= 1
    }
    return left == 0 ? "all roles\t\(memory.physical.total.rawValue)" : nil
  }

  private static func cache(_ memory: MemorySystem, _ row: UInt32) -> Line? {
    var left = row
    var line: Line?
    memory.kmem.forEachCache { cache in
      guard cache.requests > 0 else { return }
      if left == 0 {
        line =
          "\(cache.name)\t\(cache.objectSize.rawValue)\t\(cache.inUse)\t\(cache.free)\t\(cache.slabs)\t\(cache.requests)"
      }
      left &-= 1
    }
    return line
  }

  private static func thread(_ row: UInt32) -> Line? {
    var number: UInt32 = 0
    var left = row
    while let thread = Scheduler.describe(from: number) {
      if left == 0 {
        var line: Line = "\(thread.number)\t\(thread.name)\t\(name(thread.state))\t\(thread.processor)\t"
        if thread.state == .sleeping, var at = thread.waitsFor {
          while at.pointee != 0 {
            line.append(byte: at.pointee)
            at += 1
          }
        }
        return line
      }
      left -= 1
      number = thread.number + 1
    }
    return nil
  }

  private static func name(_ state: Thread.State) -> StaticString {
    switch state {
    case .ready: "ready"
    case .running: "runs"
    case .sleeping: "sleeps"
    case .ended: "ended"
    }
  }

  private static func description(
    _ memory: MemorySystem, _ address: VirtualAddress, _ row: UInt32
  ) -> Line? {
    var rows = Rows(wanted: row)
    rows.add("region\t\(OwnerDescription.describe(address.rawValue))")
    if let range = memory.space.whatIs(address).kind { rows.add("range\t\(range.description)") }
    guard let translation = memory.pageTables.translate(address) else {
      rows.add("mapping\tnone")
      return rows.found
    }
    let frame = translation.physical.frame
    rows.add("physical\t\(translation.physical), frame \(frame)")
    rows.add("role\t\(memory.physical.whatIs(frame).role.description)")
    if let object = memory.kmem.whatIs(address) {
      rows.add("cache\t\(object.cache)")
      rows.add("object\t\(object.objectStart), number \(object.index), \(name(object.standing))")
    }
    return rows.found
  }

  private static func name(_ standing: ObjectDescription.Standing) -> StaticString {
    switch standing {
    case .inUse: "in use"
    case .freeInSlab: "free in its slab"
    case .inMagazine: "free in a magazine"
    case .noObject: "behind the last object"
    }
  }

  /// Counts rows until the wanted one comes.
  private struct Rows {
    var wanted: UInt32
    var found: Line?

    mutating func add(_ line: @autoclosure () -> Line) {
      if wanted == 0 { found = line() }
      wanted &-= 1
    }
  }
}

/// Called by a debugger, never by the kernel.
@c(kernel_debugger)
public func kernelDebugger(_ question: UInt32, _ argument: UInt64, _ row: UInt32) -> UnsafePointer<UInt8>? {
  DebuggerQueries.answer(question, about: argument, row: row)
}
