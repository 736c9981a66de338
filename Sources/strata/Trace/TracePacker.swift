// From a recorder's text to a packed trace.
//
// The packer counts and drops lines that are no allocation event, and numbers the rest: object pointers by first
// appearance, frames by rank among all that appear. It decides nothing about frees without an owner or lost frees, because the
// replay does. It tracks ownership only to count peaks, and to find caches.
//
// A malformed line is dropped too: one broken line of a million is no reason to refuse the others. It is counted by its
// reason, and the first of each reason keeps its number and text for the summary.
//
// *Which cache?* Linux 6.1 prints the cache at `kmem_cache_free` only. An allocation's cache is
//   1. the one printed when the same pointer, still owned by this allocation, was freed with
//      kmem_cache_free;
//   2. failing that, the one printed most often for frees of allocations of the same call site with the same two
//     sizes (one call site serves many caches: mempool_alloc gets biovec-64 and bio-192; sizes keep them
//      apart; ties go to the name that comes first in the alphabet);
//   3. failing that, the only cache known with these two sizes;
//   4. failing that, a cache of its own, named after the function that called: `ext4_alloc_inode()`.
// A cache is a name with two sizes, so that a name that comes with several sizes gives several caches. SLUB
// merges caches of a size and prints one name for all (maple_node for the page vectors of `bvec_alloc`);
// they stay merged here.

import Workloads

/// Gathers events, then answers the packed trace.
struct TracePacker {
  /// The counts of lines that are no kept events.
  struct Dropped {
    var comments: UInt64 = 0
    /// Events that the recorder says it lost, one for each note without a number.
    var lost: UInt64 = 0
    /// Events that were overwritten before the first that is left.
    var overwritten: UInt64 = 0
    /// Whether a note had no number.
    var lostMore = false
    var others: [String: UInt64] = [:]
    /// Lines of call chains and stacks.
    var callChains: UInt64 = 0
    /// Other lines without an event, by kind.
    var otherLines: [String: UInt64] = [:]
    /// Events of objects whose pointers the kernel did not print.
    var hiddenPointers: UInt64 = 0
    /// Malformed lines, by what is wrong with them.
    var malformed: [Malformation: MalformedLines] = [:]
    /// Events behind the user's limit.
    var beyondLimit: UInt64 = 0
    var total: UInt64 {
      comments + others.values.reduce(0, +) + callChains + otherLines.values.reduce(0, +) + hiddenPointers
        + malformed.values.reduce(0) { $0 + $1.count } + beyondLimit
    }
  }

  /// The counts of allocations by the rule above that found their cache.
  struct Learned {
    var byPointer: UInt64 = 0
    var bySite: UInt64 = 0
    var bySize: UInt64 = 0
    var unknown: UInt64 = 0
  }

  private struct Sizes: Hashable {
    var requested: UInt32
    var allocated: UInt32
  }
  private struct Place: Hashable {
    var site: UInt32
    var sizes: Sizes
  }
  /// An operation before its cache is known. Names and sites are strings by number.
  private struct Draft: Hashable {
    var kind: TraceKind
    var flags: UInt8 = 0
    var limit: TraceAddressLimit = .none
    var order: UInt8 = 0
    var site: UInt32 = TraceOperation.none
    var sizes = Sizes(requested: 0, allocated: 0)
    /// Of a free, or of an allocation whose kernel prints it.
    var name: UInt32 = TraceOperation.none
  }
  private struct Event {
    var draft: Int32
    var context: TraceContext
    var processor: UInt16
    /// The name that its own free printed.
    var name: UInt32 = TraceOperation.none
    var identity: UInt64
  }

  private let limit: Int
  private(set) var dropped = Dropped()
  private(set) var learned = Learned()
  private(set) var eventsByKind = [UInt64](repeating: 0, count: TraceKind.count)
  private(set) var bytes: UInt64 = 0
  private(set) var lines: UInt64 = 0
  /// Requests that failed in the traced kernel.
  private(set) var failedRequests: UInt64 = 0
  /// Frees of a null pointer.
  private(set) var nullFrees: UInt64 = 0
  /// Whether the last line has no line feed, though it holds an event.
  private(set) var mayBeCutOff = false
  /// Whether the last line has no line feed and is malformed.
  private(set) var isCutOff = false

  private var strings: [String: UInt32] = [:]
  private var stringList: [String] = []
  private var drafts: [Draft: Int32] = [:]
  private var draftList: [Draft] = []
  private var events: [Event] = []
  private var objects: [UInt64: UInt32] = [:]
  /// By object: the event that owns it, or -1.
  private var owners: [Int32] = []
  private var votes: [Place: [UInt32: UInt64]] = [:]
  private var blocks: [UInt64: UInt8] = [:]
  private var processors: UInt32 = 1
  private var liveObjects: (count: UInt32, bytes: UInt64, allocated: UInt64) = (0, 0, 0)
  private var peak = (objects: UInt32(0), bytes: UInt64(0), allocated: UInt64(0))

  /// A packer that keeps the first `limit` events.
  init(limit: Int = .max) { self.limit = min(limit, Int(Int32.max)) }

  // MARK: Gathering

  /// Reads the next line. Throws for a recording of a form that can't be packed. A line without a line feed is the
  /// last, and may be cut off.
  mutating func take(_ bytes: LineBytes, of source: String, hasLineFeed: Bool = true) throws {
    lines += 1
    self.bytes += UInt64(bytes.count) + (hasLineFeed ? 1 : 0)
    let before = events.count
    do {
      try take(bytes, source)
    } catch let malformation as Malformation {
      dropped.malformed[malformation, default: MalformedLines(first: lines, text: Self.quoted(bytes))]
        .count += 1
      isCutOff = !hasLineFeed
    }
    mayBeCutOff = !hasLineFeed && events.count > before
  }

  private mutating func take(_ bytes: LineBytes, _ source: String) throws {
    switch TraceLine.parse(bytes) {
    case .comment: dropped.comments += 1
    case .overwritten(let count):
      dropped.comments += 1
      dropped.overwritten = dropped.overwritten.addingSaturated(count)
    case .lost(let count):
      dropped.lost = dropped.lost.addingSaturated(max(1, count ?? 0))
      if count == nil { dropped.lostMore = true }
    case .callChain: dropped.callChains += 1
    case .other(let kind): dropped.otherLines[kind, default: 0] += 1
    case .form(let form):
      // Behind an event, it is one broken line, and not the form of the recording.
      guard events.isEmpty else { throw Malformation.unreadable }
      throw Complaint("\(source), line \(grouped(lines)): \(form.advice(source))", .dataError)
    case .unreadable: throw Malformation.unreadable
    case .event(let line):
      guard let kind = Self.kinds[line.event.string] else {
        dropped.others[line.event.string, default: 0] += 1
        return
      }
      guard events.count < limit else {
        dropped.beyondLimit += 1
        return
      }
      guard let (draft, event) = try read(kind, line) else {
        dropped.hiddenPointers += 1
        return
      }
      append(draft, event)
    }
  }

  /// The kernel's names of the events. Those of frees changed in 3.3, and those with `node` went in 6.1.
  private static let kinds: [String: TraceKind] = [
    "kmalloc": .kmalloc, "kmalloc_node": .kmalloc, "kfree": .kfree, "kmem_cache_alloc": .cacheAlloc,
    "kmem_cache_alloc_node": .cacheAlloc, "kmem_cache_free": .cacheFree, "mm_page_alloc": .pageAlloc,
    "mm_page_free": .pageFree, "mm_page_free_direct": .pageFree, "mm_page_free_batched": .pageFreeBatched,
    "mm_pagevec_free": .pageFreeBatched,
  ]

  /// The event of a line; nil when its pointer is hidden.
  private mutating func read(_ kind: TraceKind, _ line: TraceLine) throws(Malformation) -> (Draft, Event)? {
    var draft = Draft(kind: kind)
    let fields = line.fields
    if kind.allocates {
      let (flags, limit) = fields.flags
      draft.flags = flags.rawValue
      draft.limit = limit
    }
    var event = Event(draft: 0, context: line.context, processor: UInt16(line.processor), identity: .max)
    if kind.isAboutPages {
      // Only a batch of single frames comes without an order.
      let order = kind == .pageFreeBatched ? fields.number("order") ?? 0 : fields.number("order")
      guard case .success(let frame) = fields.frame, let order else { throw .noFrame }
      guard order <= 18, (frame ?? 0) < 1 << 40 else { throw .impossibleFrame }
      draft.order = UInt8(order)
      if let frame { event.identity = frame }
    } else {
      guard let pointer = fields.pointer("ptr") else { throw .noPointer }
      if pointer == .hidden { return nil }
      draft.site = fields.text("call_site").map { number(of: $0.string) } ?? TraceOperation.none
      if kind.allocates {
        guard let requested = fields.number("bytes_req"), let allocated = fields.number("bytes_alloc") else {
          throw .noSizes
        }
        guard let sizes = Self.sizes(requested, allocated) else { throw .impossibleSize }
        draft.sizes = sizes
      }
      if kind == .cacheAlloc || kind == .cacheFree, let name = fields.text("name") {
        draft.name = number(of: name.string)
      }
      if case .at(let value) = pointer { event.identity = UInt64(identity(of: value)) }
    }
    return (draft, event)
  }

  private mutating func append(_ draft: Draft, _ event: Event) {
    let (kind, identity) = (draft.kind, event.identity)
    processors = max(processors, UInt32(event.processor) + 1)
    eventsByKind[Int(kind.rawValue)] += 1
    var event = event
    event.draft = number(of: draft)
    events.append(event)
    guard identity != .max else {
      if kind.allocates { failedRequests += 1 } else { nullFrees += 1 }
      return
    }
    if kind.isAboutPages {
      blocks[identity] = max(blocks[identity] ?? 0, draft.order)
    } else {
      follow(kind, draft, Int(identity))
    }
  }

  private static func sizes(_ requested: UInt64, _ allocated: UInt64) -> Sizes? {
    guard let requested = UInt32(exactly: requested), let allocated = UInt32(exactly: allocated) else {
      return nil
    }
    return Sizes(requested: max(1, requested), allocated: allocated)
  }

  /// Tracks ownership, for the peaks, and for the cache that a free prints for its allocation.
  private mutating func follow(_ kind: TraceKind, _ draft: Draft, _ object: Int) {
    if owners[object] >= 0 {
      let owner = Int(owners[object])
      let ended = draftList[Int(events[owner].draft)]
      liveObjects.count -= 1
      liveObjects.bytes -= UInt64(ended.sizes.requested)
      liveObjects.allocated -= UInt64(ended.sizes.allocated)
      owners[object] = -1
      if kind == .cacheFree, ended.kind == .cacheAlloc, draft.name != TraceOperation.none {
        events[owner].name = draft.name
        votes[Place(site: ended.site, sizes: ended.sizes), default: [:]][draft.name, default: 0] += 1
      }
    }
    guard kind.allocates else { return }
    owners[object] = Int32(events.count - 1)
    liveObjects.count += 1
    liveObjects.bytes += UInt64(draft.sizes.requested)
    liveObjects.allocated += UInt64(draft.sizes.allocated)
    peak.objects = max(peak.objects, liveObjects.count)
    peak.bytes = max(peak.bytes, liveObjects.bytes)
    peak.allocated = max(peak.allocated, liveObjects.allocated)
  }

  private mutating func number(of text: String) -> UInt32 {
    if let known = strings[text] { return known }
    let number = UInt32(stringList.count)
    strings[text] = number
    stringList.append(text)
    return number
  }

  private mutating func number(of draft: Draft) -> Int32 {
    if let known = drafts[draft] { return known }
    let number = Int32(draftList.count)
    drafts[draft] = number
    draftList.append(draft)
    return number
  }

  private mutating func identity(of pointer: UInt64) -> UInt32 {
    if let known = objects[pointer] { return known }
    let identity = UInt32(owners.count)
    objects[pointer] = identity
    owners.append(-1)
    return identity
  }

  private static func quoted(_ bytes: LineBytes) -> String {
    let line = bytes[...].trimmed
    let text = line.prefix(60).map { $0 >= 0x20 && $0 < 0x7f ? Character(Unicode.Scalar($0)) : "?" }
    return "\"" + String(text) + (line.count > 60 ? "…\"" : "\"")
  }

  // MARK: Packing

  /// Packs all events that were kept. Throws for a recording of more frames than a machine of 4 TiB has.
  mutating func pack(title: String) throws -> [UInt8] {
    let frames = Ranks(blocks)
    guard frames.count <= 1 << 30 else {
      throw Complaint("the recording names \(grouped(frames.count)) frames: 4 TiB at most", .dataError)
    }
    var counts = TraceCounts()
    counts.objects = UInt32(owners.count)
    counts.pages = UInt32(frames.count)
    counts.peakObjects = peak.objects
    counts.peakBytes = peak.bytes
    counts.peakAllocated = peak.allocated
    counts.processors = processors
    counts.dropped = UInt32(clamping: dropped.total)
    counts.title = title.isEmpty ? .max : number(of: title)

    var caches = CacheTable()
    // Caches that frees name come first, so that the only one of a size is known when an allocation needs it.
    for event in events where draftList[Int(event.draft)].kind == .cacheAlloc {
      let draft = draftList[Int(event.draft)]
      let name = draft.name != TraceOperation.none ? draft.name : event.name
      if name != TraceOperation.none { _ = caches.index(name, draft.sizes.requested, draft.sizes.allocated) }
    }
    let known = caches
    var operations: [TraceOperation] = []
    var numbers: [TraceOperationKey: UInt32] = [:]
    var packed: [TraceEvent] = []
    packed.reserveCapacity(events.count)
    var live = [Bool](repeating: false, count: Int(frames.count))
    var livePages: UInt32 = 0
    for event in events {
      let draft = draftList[Int(event.draft)]
      var operation = TraceOperation(draft.kind)
      operation.flags = TraceFlags(rawValue: draft.flags)
      operation.limit = draft.limit
      operation.order = draft.order
      operation.site = draft.site
      operation.requested = draft.sizes.requested
      operation.allocated = draft.sizes.allocated
      if draft.kind == .cacheAlloc {
        let name = self.name(of: event, draft, known)
        operation.cache = caches.index(name, draft.sizes.requested, draft.sizes.allocated)
      } else if draft.kind == .cacheFree {
        operation.cache = known.first(named: draft.name) ?? TraceOperation.none
      }
      let key = TraceOperationKey(operation)
      let number = numbers[key] ?? UInt32(operations.count)
      if number == operations.count {
        numbers[key] = number
        operations.append(operation)
      }
      var identity = TraceEvent.noIdentity
      if event.identity != .max {
        identity = draft.kind.isAboutPages ? frames.rank(of: event.identity) : UInt32(event.identity)
      }
      packed.append(
        TraceEvent(
          draft.kind, context: event.context, processor: UInt32(event.processor), operation: number,
          identity: identity))
      if draft.kind.isAboutPages && draft.kind != .pageFreeBatched && identity != TraceEvent.noIdentity {
        for frame in Int(identity)..<Int(identity) + 1 << Int(draft.order)
        where live[frame] != draft.kind.allocates {
          live[frame] = draft.kind.allocates
          if draft.kind.allocates { livePages += 1 } else { livePages -= 1 }
        }
        counts.peakPages = max(counts.peakPages, livePages)
      }
    }
    return write(counts, operations, caches.list, packed)
  }

  private mutating func name(of event: Event, _ draft: Draft, _ known: CacheTable) -> UInt32 {
    if draft.name != TraceOperation.none || event.name != TraceOperation.none {
      learned.byPointer += 1
      return draft.name != TraceOperation.none ? draft.name : event.name
    }
    if let names = votes[Place(site: draft.site, sizes: draft.sizes)] {
      learned.bySite += 1
      let best = names.max { a, b in
        a.value != b.value ? a.value < b.value : stringList[Int(a.key)] > stringList[Int(b.key)]
      }
      return best!.key
    }
    if let only = known.only(draft.sizes.requested, draft.sizes.allocated) {
      learned.bySize += 1
      return only
    }
    learned.unknown += 1
    let site = draft.site == TraceOperation.none ? "unknown" : stringList[Int(draft.site)]
    return number(of: String(site.prefix { $0 != "+" }.prefix(29)) + "()")
  }

  private func write(
    _ counts: TraceCounts, _ operations: [TraceOperation], _ caches: [TraceCache], _ packed: [TraceEvent]
  ) -> [UInt8] {
    var text: [UInt8] = []
    var ends: [UInt32] = []
    for string in stringList {
      text += Array(string.utf8)
      ends.append(UInt32(text.count))
    }
    var output: [UInt8] = []
    output.reserveCapacity(packed.count * 5)
    operations.withUnsafeBufferPointer { operations in
      caches.withUnsafeBufferPointer { caches in
        ends.withUnsafeBufferPointer { ends in
          text.withUnsafeBufferPointer { text in
            packed.withUnsafeBufferPointer { events in
              TraceContents(
                counts: counts, operations: operations, caches: caches, stringEnds: ends, text: text,
                events: events
              ).write { output.append($0) }
            }
          }
        }
      }
    }
    return output
  }

  /// Caches found so far: their number, by name and sizes.
  struct CacheTable {
    private(set) var list: [TraceCache] = []

    mutating func index(_ name: UInt32, _ size: UInt32, _ allocated: UInt32) -> UInt32 {
      let cache = TraceCache(name: name, size: size, allocated: allocated)
      if let known = list.firstIndex(of: cache) { return UInt32(known) }
      list.append(cache)
      return UInt32(list.count - 1)
    }

    func first(named name: UInt32) -> UInt32? { list.firstIndex { $0.name == name }.map { UInt32($0) } }

    /// The name of the only cache with these sizes.
    func only(_ size: UInt32, _ allocated: UInt32) -> UInt32? {
      let fitting = list.filter { $0.size == size && $0.allocated == allocated }
      return fitting.count == 1 ? fitting[0].name : nil
    }
  }
}

extension UInt64 {
  /// The sum, at most the largest number: a text may claim any.
  fileprivate func addingSaturated(_ other: UInt64) -> UInt64 {
    let (sum, over) = addingReportingOverflow(other)
    return over ? .max : sum
  }
}

/// Frame numbers that appear, and the rank of each among them.
private struct Ranks {
  /// Disjoint ranges in order, each with the rank of its first frame.
  private var ranges: [(first: UInt64, end: UInt64, rank: UInt64)] = []

  /// The frames of `blocks`: first frame to order.
  init(_ blocks: [UInt64: UInt8]) {
    for (first, order) in blocks.sorted(by: { $0.key < $1.key }) {
      let end = first + 1 << UInt64(order)
      if let last = ranges.last, last.end >= first {
        ranges[ranges.count - 1].end = max(last.end, end)
      } else {
        let rank = ranges.last.map { $0.rank + ($0.end - $0.first) } ?? 0
        ranges.append((first, end, rank))
      }
    }
  }

  var count: UInt64 { ranges.last.map { $0.rank + ($0.end - $0.first) } ?? 0 }

  func rank(of frame: UInt64) -> UInt32 {
    var (low, high) = (0, ranges.count)
    while high - low > 1 {
      let middle = (low + high) / 2
      if ranges[middle].first <= frame { low = middle } else { high = middle }
    }
    return UInt32(ranges[low].rank + (frame - ranges[low].first))
  }
}

private struct TraceOperationKey: Hashable {
  private let words: [UInt32]
  init(_ operation: TraceOperation) {
    let head = UInt32(operation.kind.rawValue) | UInt32(operation.flags.rawValue) << 8
    words = [
      head | UInt32(operation.limit.rawValue) << 16 | UInt32(operation.order) << 24, operation.site,
      operation.cache,
      operation.requested, operation.allocated,
    ]
  }
}
