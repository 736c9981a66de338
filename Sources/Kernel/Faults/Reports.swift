// Fault reports of the layers below, and panics, in the same block as exceptions.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

enum Reports {
  /// Reports a caller's bug and stops.
  static func report(_ report: FaultReport) -> Never {
    // The backtrace begins at the caller of the upcall.
    let here = UnsafePointer<UInt64>(bitPattern: UInt(cp_frame_pointer()))?.pointee ?? 0
    FaultBlock.open("\(report.kind.description)", at: cp_here())
    report.forEachLine(region: OwnerDescription.describe, place: place) { FaultBlock.field(Line($0), $1) }
    printBacktrace(from: here)
    FaultBlock.printSentence(memoryState)
    FaultBlock.stop(
      report.allocatedAt != .unknown || report.freedAt != .unknown ? "The call sites above are the bug." : "")
  }

  /// The state of memory after the bug: unchanged, if the report came before any change, as it must.
  private static var memoryState: Line {
    guard let memory = Assembly.memory else { return "Nothing was changed." }
    let free: Line =
      "\(count: memory.physical.freeCount.rawValue) of \(count: memory.physical.total.rawValue) frames are free."
    guard OtherProcessors.areIdle else { return "Nothing was changed. \(free)" }
    if let broken = memory.checkInvariants() { return "! An invariant is broken: \(broken). \(free)" }
    return "Nothing was changed; all invariants hold. \(free)"
  }

  private static func place(_ site: CallSite) -> Line {
    Symbols.place(site.address(inImageAt: VirtualAddress(Image.virtualOffset)).rawValue)
  }

  /// Stops the machine: on request, or because Strata can't run on it.
  static func panic(_ title: Line, _ words: Line) -> Never {
    let here = cp_frame_pointer()
    FaultBlock.open(title, at: cp_here())
    FaultBlock.field("what", words)
    printBacktrace(from: here)
    FaultBlock.stop("")
  }
}
