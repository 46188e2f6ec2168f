import Foundation

/// The reason why the model does not answer.
struct ModelError: LocalizedError {
    let errorDescription: String?

    init() { errorDescription = String(cString: model_problem()) }
}

/// A language model and a conversation with it, in C. Use it from one thread at a time.
final class Model {
    private let native: OpaquePointer

    /// - Parameter folder: the folder that contains `model/`.
    init(folder: String) throws {
        guard let opened = model_open(folder) else { throw ModelError() }
        native = opened
    }

    deinit { model_close(native) }

    /// The execution provider that runs the model, and if it is not edgetie's, why.
    var provider: String { String(cString: model_provider(native)) }

    /// Begins a new conversation.
    func reset() { model_reset(native) }

    /// Answers a prompt, which continues the conversation.
    /// - Parameters:
    ///   - options: temperature, top-k, top-p and others; by default as the model's own settings say.
    ///   - stopStrings: texts that end an answer; by default as the model's own settings say.
    ///   - show: gets each part of the text, which may be empty, and returns whether to go on.
    func answer(
        _ prompt: String, options: Options = model_options(), stopStrings: [String]? = nil,
        show: (String) -> Bool
    ) throws {
        var options = options
        let stops = stopStrings.map { Array(($0.map { $0 + "\0" }.joined() + "\0").utf8CString) } ?? []
        try withoutActuallyEscaping(show) { show in
            let listener = Listener(show)
            let answered = stops.withUnsafeBufferPointer { stops in
                if !stops.isEmpty { options.stop_strings = stops.baseAddress }
                return withExtendedLifetime(listener) {
                    model_answer(
                        native, prompt, &options,
                        { user, text, length in
                            let bytes = UnsafeRawBufferPointer(start: text, count: length)
                            let listener = Unmanaged<Listener>.fromOpaque(user!).takeUnretainedValue()
                            return listener.show(String(decoding: bytes, as: UTF8.self)) ? 1 : 0
                        },
                        Unmanaged.passUnretained(listener).toOpaque())
                }
            }
            if answered == 0 { throw ModelError() }
        }
    }
}

private final class Listener {
    let show: (String) -> Bool

    init(_ show: @escaping (String) -> Bool) { self.show = show }
}
