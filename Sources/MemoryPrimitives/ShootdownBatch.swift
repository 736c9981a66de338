// Pages whose translations changed, put by until every processor may be told to forget them: the change
// is made with a spin lock held, the telling is an upcall and comes after it.
//
// Pages that come in the order of their addresses become one run, and go in one message; no other order is looked
// for, as the pages of a run of frames have none. More runs than fit become "all": whoever changes them can't stop
// in the middle, and forgetting too much is never wrong.

import CPlatform

/// Up to 32 runs of pages to be forgotten: a plain value of whoever changes them.
public struct ShootdownBatch {
  /// Runs that fit in.
  @inlinable public static var capacity: Int { 32 }

  /// Runs that are in.
  public private(set) var count = 0
  private var isAll = false
  private var runs: InlineArray<32, cp_page_run> = .init(repeating: cp_page_run(address: 0, count: 0))

  public init() {}

  public var isEmpty: Bool { count == 0 && !isAll }
  /// Whether another page may make it all pages.
  public var isFull: Bool { count == Self.capacity }

  /// Adds the page that holds `address`. Constant.
  public mutating func add(_ address: VirtualAddress) {
    let page = address.page.rawValue
    if count > 0, runs[count - 1].address &+ runs[count - 1].count &* Page.size == page, page != 0 {
      runs[count - 1].count += 1
      return
    }
    guard count < Self.capacity else {
      isAll = true
      return
    }
    runs[count] = cp_page_run(address: page, count: 1)
    count += 1
  }

  /// Makes every processor invalidate the pages, and empties the batch: one upcall, and none when it is empty. No spin
  /// lock may be held.
  public mutating func flush(on machine: Machine) {
    if isAll {
      machine.shootDownAll()
    } else if count > 0 {
      withUnsafePointer(to: &runs) {
        machine.shootDown(UnsafeRawPointer($0).assumingMemoryBound(to: cp_page_run.self), count)
      }
    }
    (count, isAll) = (0, false)
  }
}
