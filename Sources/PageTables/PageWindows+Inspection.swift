// Queries on page windows: the window that an address belongs to, and its state.

import MemoryPrimitives

/// The window that an address belongs to.
package struct WindowPlace {
  /// The processor whose window it is.
  package let processor: ProcessorIndex
  /// The code that it is for.
  package let depth: Depth
  /// The part of its four pages that holds the address.
  package let part: Part

  /// Code that has windows of its own.
  package enum Depth: UInt8, Sendable {
    case thread, interrupt

    /// The word that the console prints.
    package var description: StaticString {
      switch self {
      case .thread: "thread"
      case .interrupt: "interrupt"
      }
    }
  }
  /// A part of a window.
  package enum Part: UInt8, Sendable { case first, second, behind }

  /// Finds the window that holds `address`, the unmapped pages behind it included, of windows from `base` on; nil for
  /// an address of none.
  package init?(of address: VirtualAddress, from base: VirtualAddress, processors: Int) {
    let page = (address.rawValue &- base.rawValue) >> Page.shift
    let number = page / PageWindows.stride
    guard number < UInt64(processors) * PageWindows.depths else { return nil }
    processor = ProcessorIndex(UInt32(number / PageWindows.depths))
    depth = number % PageWindows.depths == 0 ? .thread : .interrupt
    part =
      switch page % PageWindows.stride {
      case 0: .first
      case 1: .second
      default: .behind
      }
  }

  /// The place in one clause.
  package var description: Line {
    let code: StaticString =
      switch depth {
      case .thread: "threads"
      case .interrupt: "interrupts"
      }
    let page: StaticString =
      switch part {
      case .first: "the first page of"
      case .second: "the second page of"
      case .behind: "an unmapped page behind"
      }
    return "\(page) the page window of cpu \(processor.rawValue) for \(code)"
  }
}

extension PageWindows {
  var map: PageMap { state.pointee.map }
  private var base: UInt64 { state.pointee.base }
  private var processors: UInt64 { state.pointee.processors }
  var arePrepared: Bool { processors > 0 }

  /// The window that holds `address`; nil for an address of none.
  package func place(of address: VirtualAddress) -> WindowPlace? {
    WindowPlace(of: address, from: VirtualAddress(base), processors: Int(processors))
  }

  /// Whether any of `count` pages from `address` on belongs to the windows.
  @inline(__always) func overlap(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    let pages = processors &* Self.depths &* Self.stride
    let into = (address.rawValue &- base) >> Page.shift
    return into < pages || ((base &- address.rawValue) >> Page.shift < count.rawValue && pages > 0)
  }
}
