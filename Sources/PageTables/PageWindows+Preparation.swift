// The tables of page windows: prepared once, at boot, for every processor that may ever run.

import CPlatform
import MemoryPrimitives
import Synchronization

extension PageMap {
  /// This tree's page windows, of each processor of its machine once they are prepared.
  package var windows: PageWindows { PageWindows(state: state.pointee.windows) }

  /// Prepares the windows of all processors from `base` on, in tables that stay. Throws `noMemory`, with all as before,
  /// when no frame is free for them. Call it once, before any window is opened.
  package func prepareWindows(at base: VirtualAddress) throws(PageTableError) {
    // The entries of a processor lie in one table.
    precondition(!windows.arePrepared && isCanonical(base))
    precondition(base.rawValue % (PageWindows.stride * PageWindows.depths << Page.shift) == 0)
    let count = UInt64(machine.processorCount) * PageWindows.depths
    func window(_ number: UInt64) -> VirtualAddress { base + PageCount(number * PageWindows.stride) }
    for number in 0..<count {
      do throws(PageTableError) {
        try fill(window(number), PageWindows.pages, with: .windows)
      } catch {
        for undone in 0..<number { clearMarks(window(undone), PageWindows.pages) }
        throw error
      }
    }
    windows.adopt(base)
  }
}

extension PageWindows {
  /// Records that the processors have loaded these tables, before a window is opened. In a host process they never do.
  package func recordLoaded() {
    if cp_loaded_root() == map.root.rawValue { state.pointee.simulated = 0 }
  }

  /// Pages of a window that map frames.
  static var pages: PageCount { PageCount(UInt64(2)) }

  /// Bytes that the state needs for so many processors.
  static func size(processors: Int) -> ByteCount {
    ByteCount(MemoryLayout<State>.stride + processors * MemoryLayout<Entry>.stride)
  }

  func initialize(for map: PageMap) { state.initialize(to: State(map)) }

  /// Finds the entries of the windows that were prepared from `base` on.
  fileprivate func adopt(_ base: VirtualAddress) {
    let processors = map.machine.processorCount
    for index in 0..<processors {
      let first = base + PageCount(UInt64(index) * Self.depths * Self.stride)
      (entries + index).initialize(to: map.withTree { $0.descend(first.rawValue).slot.pointer })
    }
    state.pointee.base = base.rawValue
    state.pointee.processors = UInt64(processors)
  }
}
