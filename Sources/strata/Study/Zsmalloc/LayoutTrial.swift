// One layout with objects of given sizes: filled, half freed, filled again, and on fragmented memory.

import HostMachine
import KernelMemory
import MemoryPrimitives

/// The layouts that the study compares.
enum StudiedLayout: String, CaseIterable {
  case strata = "strata"
  case linux61 = "linux-6.1"
  case linux63 = "linux-6.3"
  case joined = "joined"
  case zbud = "zbud"
  case xvmalloc = "xvmalloc"
  case orderOne = "order-1"

  var title: String {
    switch self {
    case .strata: "Strata"
    case .linux61: "Linux 6.1, chains of 4"
    case .linux63: "Linux 6.3, chains of 8"
    case .joined: "any end, any start"
    case .zbud: "two a page (zbud)"
    case .xvmalloc: "in a page (xvmalloc)"
    case .orderOne: "order-1 blocks"
    }
  }

  /// An empty layout on the machine.
  func make(on memory: MemorySystem, _ supply: FrameSupply) -> any ObjectLayout {
    switch self {
    case .strata: StrataStore(memory)
    case .linux61: LinuxChains(.linux61, supply)
    case .linux63: LinuxChains(.linux63, supply)
    case .joined: JoinedPages(supply)
    case .zbud: TwoToAPage(supply)
    case .xvmalloc: TwoLevelFreeLists(supply)
    case .orderOne: OrderOneBlocks(supply)
    }
  }
}

/// The figures of a layout. Densities are bytes of objects for each byte of frames, with those of tables.
struct LayoutOutcome {
  var layout: StudiedLayout
  var objects = 0
  var filled = 0.0
  var filledCompacted: Double?
  var halved = 0.0
  var halvedCompacted: Double?
  var refilled = 0.0
  var metadata = 0.0
  /// Objects refused: with plenty of memory, and with a quarter more free frames than the layout has then used.
  var refused = 0
  var refusedEverySecond = 0
  var refusedRandomQuarter = 0
}

struct LayoutTrial {
  let layout: StudiedLayout
  let sizes: [Int]
  let seed: UInt64
  let memory: MemorySystem

  /// Runs the trial on memory that is empty.
  func run() throws -> LayoutOutcome {
    var outcome = LayoutOutcome(layout: layout, objects: sizes.count)
    let frames = try fill(&outcome)
    try refill(&outcome)
    let fragmented = FragmentedMemory(memory.physical)
    let count = min(frames + frames / 4, fragmented.capacity)
    try fragmented.withFree(count, .everySecond, seed: seed) {
      outcome.refusedEverySecond = try countRefused()
    }
    try fragmented.withFree(count, .randomQuarter, seed: seed) {
      outcome.refusedRandomQuarter = try countRefused()
    }
    return outcome
  }

  /// Fills the layout, and frees a random half. Answers how many frames it held when it was full.
  private func fill(_ outcome: inout LayoutOutcome) throws -> Int {
    var frames = 0
    try withLayout { trial in
      outcome.refused = trial.storeAll()
      let held = trial.layout.held
      frames = Int(held.frames)
      outcome.filled = trial.density
      outcome.metadata = Double(held.metadata) / Double(max(1, trial.count))
      outcome.filledCompacted = try trial.compacted()
      trial.freeHalf()
      outcome.halved = trial.density
      outcome.halvedCompacted = try trial.compacted()
    }
    return frames
  }

  /// Fills the layout, frees a random half, and stores as many of the same sizes in another order.
  private func refill(_ outcome: inout LayoutOutcome) throws {
    try withLayout { trial in
      _ = trial.storeAll()
      trial.storeAgain(trial.freeHalf())
      outcome.refilled = trial.density
    }
  }

  private func countRefused() throws -> Int {
    var refused = 0
    try withLayout { refused = $0.storeAll() }
    return refused
  }

  /// Runs `body` with an empty layout, empties it, and throws if it keeps a frame.
  private func withLayout(_ body: (FilledLayout) throws -> Void) throws {
    let supply = FrameSupply(memory.physical)
    let free = memory.physical.freeCount
    let filled = FilledLayout(layout.make(on: memory, supply), sizes, seed: seed)
    try body(filled)
    try filled.check()
    filled.freeAll()
    guard memory.physical.freeCount == free, supply.held == 0 else {
      throw Complaint("\(layout.rawValue) keeps frames without an object", .software)
    }
  }
}

/// A layout and the objects in it.
private final class FilledLayout {
  let layout: any ObjectLayout
  private let sizes: [Int]
  private let seed: UInt64
  /// The number of each stored object in the layout, and its size.
  private var objects: [(number: Int, size: Int)] = []
  private var bytes: UInt64 = 0

  init(_ layout: any ObjectLayout, _ sizes: [Int], seed: UInt64) {
    (self.layout, self.sizes, self.seed) = (layout, sizes, seed)
  }

  var count: Int { objects.count }
  var density: Double {
    let frames = layout.held.frames
    return frames == 0 ? 0 : Double(bytes) / Double(frames * Page.size)
  }

  /// Stores all, and answers how many were refused.
  func storeAll() -> Int { sizes.count { !store($0) } }

  private func store(_ size: Int) -> Bool {
    guard let number = layout.store(size) else { return false }
    objects.append((number, size))
    bytes += UInt64(size)
    return true
  }

  /// Frees a random half, and answers its sizes.
  @discardableResult func freeHalf() -> [Int] {
    let order = permutation(of: objects.count, seed: seed)
    let (freed, kept) = (order.prefix(order.count / 2), order.dropFirst(order.count / 2))
    for index in freed {
      layout.free(objects[index].number)
      bytes -= UInt64(objects[index].size)
    }
    let sizes = freed.map { objects[$0].size }
    objects = kept.map { objects[$0] }
    return sizes
  }

  /// Stores objects of these sizes in a random order.
  func storeAgain(_ sizes: [Int]) {
    for index in permutation(of: sizes.count, seed: seed + 1) { _ = store(sizes[index]) }
  }

  func freeAll() {
    for object in objects { layout.free(object.number) }
    objects = []
  }

  /// The density after compaction; nil for a layout that has none.
  func compacted() throws -> Double? {
    guard layout.canCompact else { return nil }
    layout.compact()
    try check()
    return density
  }

  /// Throws if an object's bytes have changed.
  func check() throws {
    if let damaged = (layout as? StrataStore)?.firstDamaged() {
      throw Complaint("object \(damaged) is not as it was stored", .software)
    }
  }
}
