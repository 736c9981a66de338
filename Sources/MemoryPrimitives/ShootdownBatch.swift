// Pages whose translations changed, put by until every processor may be told to forget them: the change
// is made with a spin lock held, the telling is an upcall and comes after it.
//
// The pages are kept in order, so that neighbours go in one message whatever order they came in.

/// Up to 32 pages to be forgotten: a plain value of whoever changes them.
public struct ShootdownBatch {
  /// Pages that fit in.
  @inlinable public static var capacity: Int { 32 }

  /// Pages that are in, each once.
  public private(set) var count = 0
  private var pages: InlineArray<32, UInt64> = .init(repeating: 0)

  public init() {}

  public var isEmpty: Bool { count == 0 }
  /// Whether it must be flushed before another page is added.
  public var isFull: Bool { count == Self.capacity }

  /// Adds the page that holds `address`. Traps when the batch is full. A step when pages come in the order of
  /// their addresses, else one for each that is higher.
  public mutating func add(_ address: VirtualAddress) {
    precondition(count < Self.capacity, "a batch of pages to be forgotten is full")
    let page = address.page.rawValue
    var place = count
    while place > 0, pages[place - 1] > page { place -= 1 }
    if place > 0 && pages[place - 1] == page { return }
    var next = count
    while next > place {
      pages[next] = pages[next - 1]
      next -= 1
    }
    pages[place] = page
    count += 1
  }

  /// Makes every processor forget the pages, and empties the batch. An upcall for each row of neighbours. No
  /// spin lock may be held.
  public mutating func flush(on machine: Machine) {
    var first = 0
    while first < count {
      var end = first + 1
      while end < count, pages[end] == pages[end - 1] &+ Page.size { end += 1 }
      machine.shootDown(VirtualAddress(pages[first]), PageCount(end - first))
      first = end
    }
    count = 0
  }
}
