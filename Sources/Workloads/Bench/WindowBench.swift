// The cost of a page window: to open it, to load a word that straddles its two frames, and to close it.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables

/// The bench of one system's page windows.
package struct WindowBench {
  private let windows: PageWindows
  private let frame: FrameNumber

  package init(_ memory: MemorySystem) {
    windows = memory.pageTables.windows
    frame = memory.pageTables.root.frame
  }

  /// Cycles of a window, measured over a thousand in a row. The least of five rows counts, as an interrupt falls into
  /// few of them.
  package var cyclesOfPair: UInt64 {
    let count: UInt64 = 1000
    var least = UInt64.max
    for _ in 0..<5 {
      let start = cp_cycles()
      for _ in 0..<count {
        let window = windows.open(frame, frame, for: .read)
        let word = window.withBytes(at: Int(Page.size) - 4, count: 8) { $0.loadUnaligned(as: UInt64.self) }
        _ = cp_opaque_number(word)
        window.close()
      }
      least = min(least, cp_cycles() &- start)
    }
    return least / count
  }
}
