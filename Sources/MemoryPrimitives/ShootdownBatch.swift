// Pages whose translations changed, collected for one TLB shootdown. The change is made with a spin lock held; the
// shootdown is an upcall and comes after it.
//
// Pages added in the order of their addresses become one run, in one message. No other order is sought, because the pages
// of a run of frames have none. More runs than fit become "all": the change can't stop in the middle, and to invalidate
// too much is never wrong.

import CPlatform

/// Up to 32 runs of pages to be invalidated: a plain value of the code that changes translations.
@usableFromInline package struct ShootdownBatch {
  /// The most runs that it holds.
  @inlinable package static var capacity: Int { 32 }

  /// Runs that it holds.
  package private(set) var count = 0
  private var isAll = false
  private var runs: InlineArray<32, cp_page_run> = .init(repeating: cp_page_run(address: 0, count: 0))

  /// Makes an empty batch.
  package init() {}

  /// Whether the batch has no page.
  package var isEmpty: Bool { count == 0 && !isAll }
  /// Whether the next page may make it all pages.
  package var isFull: Bool { count == Self.capacity }

  /// Adds the page that holds `address`. Constant.
  package mutating func add(_ address: VirtualAddress) {
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
  package mutating func flush(on machine: Machine) {
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
