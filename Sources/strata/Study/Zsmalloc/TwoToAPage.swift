// A model of zbud: two objects a page, one from its start and one from its end.
//
// A page has 64 chunks of 64 bytes; the first one is its header. An object goes to the page with one object that
// leaves the fewest chunks unused. One of more than 3968 bytes is refused, and goes to the disk.
//
// SOURCES
//   Linux, mm/zbud.c of 6.1.

import MemoryPrimitives

final class TwoToAPage: ModelLayout {
  private static let (chunk, chunks, longest) = (64, 63, 3968)

  private struct PairPage {
    var frame: FrameNumber
    /// Chunks of the object at the start, and of that at the end; 0 for none.
    var first = 0
    var last = 0
    var free: Int { TwoToAPage.chunks - first - last }
  }

  private struct Place {
    var page: Int
    var isFirst: Bool
    var size: Int
  }

  private let supply: FrameSupply
  private var pages: [PairPage?] = []
  private var unused: [Int] = []
  private var places: [Place?] = []
  /// Pages with one object, by their unused chunks.
  private var single: [[Int]] = Array(repeating: [], count: chunks + 1)
  private var dataFrames: UInt64 = 0

  init(_ supply: FrameSupply) { self.supply = supply }

  var held: HeldFrames { HeldFrames(data: dataFrames, tables: 0, headers: dataFrames * UInt64(Self.chunk)) }

  func store(_ size: Int) -> Int? {
    guard size <= Self.longest else { return nil }
    let count = (size + Self.chunk - 1) / Self.chunk
    guard let number = (count...Self.chunks).lazy.compactMap({ self.single[$0].last }).first ?? addPage(),
      var page = pages[number]
    else { return nil }
    single[page.free].removeAll { $0 == number }
    let isFirst = page.first == 0
    if isFirst { page.first = count } else { page.last = count }
    pages[number] = page
    if page.first == 0 || page.last == 0 { single[page.free].append(number) }
    places.append(Place(page: number, isFirst: isFirst, size: size))
    return places.count - 1
  }

  func free(_ object: Int) {
    guard let place = places[object], var page = pages[place.page] else { return }
    places[object] = nil
    if page.first == 0 || page.last == 0 { single[page.free].removeAll { $0 == place.page } }
    if place.isFirst { page.first = 0 } else { page.last = 0 }
    pages[place.page] = page
    if page.first > 0 || page.last > 0 { return single[page.free].append(place.page) }
    supply.free(page.frame)
    pages[place.page] = nil
    unused.append(place.page)
    dataFrames -= 1
  }

  func parts(of object: Int) -> [ObjectPart] {
    guard let place = places[object], let page = pages[place.page] else { return [] }
    let start = place.isFirst ? Self.chunk : Int(Page.size) - page.last * Self.chunk
    return [ObjectPart(frame: page.frame, bytes: start..<(start + place.size))]
  }

  private func addPage() -> Int? {
    guard let frame = supply.allocate() else { return nil }
    dataFrames += 1
    if let number = unused.popLast() {
      pages[number] = PairPage(frame: frame)
      return number
    }
    pages.append(PairPage(frame: frame))
    return pages.count - 1
  }
}
